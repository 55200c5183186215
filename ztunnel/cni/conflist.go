package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// object is a JSON object whose values nobody looks at are kept as they are.
type object = map[string]json.RawMessage

// withEntry returns a network configuration list with entry as its last plugin, and the only one of its type. A
// configuration of a single plugin becomes a list of two.
func withEntry(conf []byte, entry *Config) ([]byte, error) {
	list, plugins, err := open(conf)
	if err != nil {
		return nil, err
	}
	if _, isList := list["plugins"]; !isList {
		plugins = []object{list}
		list = object{"name": list["name"]}
		if v, ok := plugins[0]["cniVersion"]; ok {
			list["cniVersion"] = v
		}
	}
	if plugins = without(plugins); len(plugins) == 0 {
		return nil, errors.New("no plugin in it but ours")
	}
	b, err := json.Marshal(struct {
		Type string `json:"type"`
		*Config
	}{Name, entry})
	if err != nil {
		return nil, err
	}
	var ours object
	if err := json.Unmarshal(b, &ours); err != nil {
		return nil, err
	}
	return seal(list, append(plugins, ours))
}

// withoutEntry returns the configuration without our plugin. changed is false if it had none.
func withoutEntry(conf []byte) (out []byte, changed bool, err error) {
	list, plugins, err := open(conf)
	if err != nil {
		return nil, false, err
	}
	rest := without(plugins)
	if len(rest) == len(plugins) {
		return conf, false, nil
	}
	out, err = seal(list, rest)
	return out, true, err
}

func open(conf []byte) (list object, plugins []object, err error) {
	if err := json.Unmarshal(conf, &list); err != nil {
		return nil, nil, fmt.Errorf("decode: %w", err)
	}
	if raw, ok := list["plugins"]; ok {
		if err := json.Unmarshal(raw, &plugins); err != nil {
			return nil, nil, fmt.Errorf("decode plugins: %w", err)
		}
	}
	return list, plugins, nil
}

func seal(list object, plugins []object) ([]byte, error) {
	b, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	list["plugins"] = b
	return json.MarshalIndent(list, "", "  ")
}

func without(plugins []object) []object {
	return slices.DeleteFunc(slices.Clone(plugins), func(p object) bool { return text(p["type"]) == Name })
}

// configs are the network configurations of a directory that a container runtime would look at, in its order.
func configs(dir string) ([]string, error) {
	all, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var files []string
	for _, f := range all {
		if ext := filepath.Ext(f.Name()); !f.IsDir() && (ext == ".conf" || ext == ".conflist" || ext == ".json") {
			files = append(files, filepath.Join(dir, f.Name()))
		}
	}
	return files, nil
}

// primary is the configuration that a container runtime takes: the first one that is valid and has a plugin. "" if there is
// none yet.
func primary(dir string) (path string, conf []byte, err error) {
	files, err := configs(dir)
	if err != nil {
		return "", nil, err
	}
	for _, path := range files {
		conf, err := os.ReadFile(path)
		if err == nil && valid(path, conf) {
			return path, conf, nil
		}
	}
	return "", nil, nil
}

// valid says that libcni would take the file: a list has a name and plugins, and each plugin a type.
func valid(path string, conf []byte) bool {
	list, plugins, err := open(conf)
	if err != nil {
		return false
	}
	if filepath.Ext(path) != ".conflist" {
		plugins = []object{list}
	}
	return len(plugins) > 0 && text(list["name"]) != "" && !slices.ContainsFunc(plugins, func(p object) bool { return text(p["type"]) == "" })
}

// text is a JSON string's value, "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
