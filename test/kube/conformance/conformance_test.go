// Package conformance runs the Gateway API's conformance tests for meshes against the cluster of KUBECONFIG, which has the
// mesh installed (make kube-conformance). The flags are the suite's own.
package conformance

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

// claimed are the extended features. What of the mesh's own is not among them is in docs/conformance/README.md, with its
// reason. The last block are features of HTTPRoute that are in no profile of meshes, so no report names them, but some
// tests of meshes need them.
var claimed = []features.FeatureName{
	features.SupportMeshClusterIPMatching,
	features.SupportMeshHTTPRouteBackendRequestHeaderModification,
	features.SupportMeshHTTPRouteNamedRouteRule,
	features.SupportMeshHTTPRouteQueryParamMatching,
	features.SupportMeshHTTPRouteRedirectPath,
	features.SupportMeshHTTPRouteRedirectPort,
	features.SupportMeshHTTPRouteRewritePath,
	features.SupportMeshHTTPRouteSchemeRedirect,

	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
}

const waypoint = "waypoint"

func TestMesh(t *testing.T) {
	flag.Parse()
	opts := conformance.DefaultOptions(t)
	opts.ConformanceProfiles = []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	if len(opts.SupportedFeatures) == 0 {
		opts.SupportedFeatures = claimed
	}
	opts.NamespaceLabels = map[string]string{"istio.io/dataplane-mode": "ambient"}

	s, err := suite.NewConformanceTestSuite(opts)
	require.NoError(t, err)
	s.Setup(t, tests.ConformanceTests)
	addWaypoint(t, s.Client)
	t.Cleanup(func() { // the suite has no report before it ended, which is in a later Cleanup
		if opts.ReportOutputPath == "" {
			return
		}
		report, err := s.Report()
		require.NoError(t, err)
		text, err := yaml.Marshal(report)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(opts.ReportOutputPath, text, 0o644))
	})
	require.NoError(t, s.Run(t, tests.ConformanceTests))
}

// addWaypoint makes the waypoint that serves routes for the Services of the suite, waits until it answers, and has the
// namespace use it.
func addWaypoint(t *testing.T, c client.Client) {
	t.Helper()
	ctx := t.Context()
	gw := &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: suite.MeshNamespace, Name: waypoint},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: "istio-waypoint",
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
		},
	}
	require.NoError(t, client.IgnoreAlreadyExists(c.Create(ctx, gw)))
	require.Eventually(t, func() bool {
		return c.Get(ctx, client.ObjectKeyFromObject(gw), gw) == nil && meta.IsStatusConditionTrue(gw.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
	}, 3*time.Minute, time.Second, "the waypoint is not programmed")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: suite.MeshNamespace}}
	use := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"istio.io/use-waypoint":"`+waypoint+`"}}}`))
	require.NoError(t, c.Patch(ctx, ns, use))
}
