package main

import (
	"fmt"
	"strconv"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/ztunnel"
)

// meshConfigPath is where the chart mounts the mesh configuration.
const meshConfigPath = "./etc/istio/config/mesh"

// proxyYAML is the part of Istio's ProxyConfig that ztunnel knows.
type proxyYAML struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   uint16            `json:"proxyAdminPort"`
	StatsPort        uint16            `json:"statsPort"`
	Concurrency      *uint16           `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// readMeshConfig returns defaultConfig of the mesh configuration with PROXY_CONFIG merged over it.
func readMeshConfig(mesh []byte, proxyConfig string) (proxyYAML, error) {
	var m struct {
		DefaultConfig proxyYAML `json:"defaultConfig"`
	}
	if err := yaml.Unmarshal(mesh, &m); err != nil {
		return proxyYAML{}, usageError{fmt.Errorf("decode mesh configuration: %w", err)}
	}
	if err := yaml.Unmarshal([]byte(proxyConfig), &m.DefaultConfig); err != nil {
		return proxyYAML{}, usageError{fmt.Errorf("decode PROXY_CONFIG: %w", err)}
	}
	return m.DefaultConfig, nil
}

// apply sets what the configuration says; the environment comes after it.
func (p *proxyYAML) apply(cfg *ztunnel.ProxyConfig) {
	if p.DiscoveryAddress != "" {
		cfg.XDSAddress, cfg.CAAddress = p.DiscoveryAddress, p.DiscoveryAddress
	}
	if p.ProxyAdminPort != 0 {
		cfg.AdminAddress = "localhost:" + strconv.Itoa(int(p.ProxyAdminPort))
	}
	if p.StatsPort != 0 {
		cfg.MetricsAddress = ":" + strconv.Itoa(int(p.StatsPort))
	}
}
