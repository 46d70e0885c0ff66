package explain

import (
	"reflect"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// TestAdviceForPodsWithoutLabels: what is advised about a Pod works in a cluster, which
// knows no labels of ours; a workload that is no Pod is meant by its name.
func TestAdviceForPodsWithoutLabels(t *testing.T) {
	for _, test := range []struct {
		orchestrator string
		labels       map[string]string
		want         bocage.Selector
		wider        bool
	}{
		{bocage.OrchestratorKubernetes, nil, bocage.Selector{}, true},
		{bocage.OrchestratorKubernetes, map[string]string{"pod-template-hash": "7"}, bocage.Selector{}, true},
		{bocage.OrchestratorKubernetes, map[string]string{"tier": "a"}, bocage.Selector{MatchLabels: map[string]string{"tier": "a"}}, false},
		{"", nil, bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: "b"}}, false},
	} {
		w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "y", Name: "b", Labels: test.labels}, Spec: bocage.WorkloadSpec{Orchestrator: test.orchestrator}}
		e := end{ingress: true, peer: party{workload: w}, protocol: bocage.ProtocolTCP, port: 80}
		peer := e.networkPeer("x")
		if !reflect.DeepEqual(*peer.PodSelector, test.want) || peer.NamespaceSelector == nil {
			t.Errorf("%v of %q is meant by %+v, want %+v", test.labels, test.orchestrator, peer.PodSelector, test.want)
		}
		if wider := e.wider(); strings.Contains(wider, "every Pod of y") != test.wider {
			t.Errorf("%v of %q: %q", test.labels, test.orchestrator, wider)
		}
		if pods := podsLike(w); !reflect.DeepEqual(*pods.PodSelector, test.want) {
			t.Errorf("%v of %q is meant by %+v", test.labels, test.orchestrator, pods.PodSelector)
		}
	}
}
