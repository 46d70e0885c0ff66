package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bocage.dev/bocage"
)

// kubectlOutput is what `kubectl get namespaces,networkpolicies,pods,svc -o yaml` prints.
const kubectlOutput = `apiVersion: v1
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    creationTimestamp: "2026-01-02T03:04:05Z"
    labels:
      kubernetes.io/metadata.name: shop
    name: shop
    resourceVersion: "17"
    selfLink: /api/v1/namespaces/shop
    uid: 6e3a6a7e-5a53-4a6c-a3f9-4f2c1bb7c3aa
  spec:
    finalizers:
    - kubernetes
    someday: {more: fields}
  status:
    phase: Active
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy"}
    creationTimestamp: null
    generation: 1
    managedFields:
    - apiVersion: networking.k8s.io/v1
      fieldsType: FieldsV1
      fieldsV1:
        f:spec: {}
      manager: kubectl
      operation: Update
      time: "2026-01-02T03:04:05Z"
    name: web
    namespace: shop
  spec:
    egress:
    - {}
    ingress:
    - from:
      - ipBlock:
          cidr: 10.0.0.0/8
          except:
          - 10.1.0.0/16
      ports:
      - endPort: 90
        port: 80
        protocol: TCP
      - port: dns
        protocol: UDP
    podSelector:
      matchLabels:
        app: web
    policyTypes:
    - Ingress
    - Egress
  status: {}
- apiVersion: v1
  kind: Pod
  metadata: {name: web-1, namespace: shop}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
- apiVersion: v1
  kind: Event
  metadata: {name: web.17, namespace: shop}
  eventTime: null
kind: List
metadata:
  resourceVersion: ""
`

func TestReadsWhatKubectlPrints(t *testing.T) {
	var foreign []string
	reader := Reader{Namespace: "default", Foreign: func(tree *Tree) bocage.Faults {
		kind, _ := tree.Text("kind")
		name, _ := tree.Text("metadata", "name")
		foreign = append(foreign, kind+" "+name+" "+tree.Source(""))
		return nil
	}}
	documents, faults := reader.Read("all.yaml", []byte(kubectlOutput))
	if len(faults) > 0 || len(documents) != 2 {
		t.Fatalf("%d documents, %v", len(documents), faults)
	}
	policy := documents[1].Resource.(*bocage.NetworkPolicy)
	if policy.Spec.Ingress[0].Ports[1].Port.Name != "dns" || *policy.Spec.Ingress[0].Ports[0].EndPort != 90 || len(policy.Spec.Egress) != 1 {
		t.Errorf("read as %+v", policy.Spec)
	}
	if diff := cmp.Diff([]string{"Pod web-1 all.yaml:59", "Service web all.yaml:62", "Event web.17 all.yaml:65"}, foreign); diff != "" {
		t.Error(diff)
	}
	// Without a place for them, foreign kinds are faults.
	if _, faults := Read("all.yaml", []byte(kubectlOutput)); len(faults) == 0 {
		t.Error("a Pod was read by nobody")
	}
}

func TestListsOfOneKind(t *testing.T) {
	var foreign []string
	reader := Reader{Namespace: "default", Foreign: func(tree *Tree) bocage.Faults {
		kind, _ := tree.Text("kind")
		name, _ := tree.Text("metadata", "name")
		foreign = append(foreign, kind+" "+name)
		return nil
	}}
	var names []string
	for _, text := range []string{
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicyList","metadata":{},"items":[{"metadata":{"name":"a"},"spec":{"podSelector":{}}}]}`,
		`{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicyList","items":null}`,
		`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"p"}},{"metadata":{"name":"q"}}]}`,
		`{"apiVersion":"apps/v1","kind":"DeploymentList","items":[{"metadata":{"name":"d"}}]}`,
		`[{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"s"},"spec":{"mode":"observe"}}]`,
	} {
		documents, faults := reader.Read("x.json", []byte(text))
		for _, f := range faults {
			if f.Message != "holds no object" {
				t.Errorf("%s\n%v", text, f)
			}
		}
		for _, d := range documents {
			names = append(names, d.Resource.Type().Kind+" "+d.Resource.Meta().NamespacedName())
		}
	}
	if diff := cmp.Diff([]string{"NetworkPolicy default/a", "Scope s"}, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"Pod p", "Pod q", "Deployment d"}, foreign); diff != "" {
		t.Error(diff)
	}
}

// TestWhatOnlyLooksForeign: a policy that would be left out in silence would be
// a hole.
func TestWhatOnlyLooksForeign(t *testing.T) {
	reader := Reader{Namespace: "default", Foreign: func(*Tree) bocage.Faults { return nil }}
	for text, want := range map[string]string{
		"apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n":       "f.yaml:1: apiVersion: \"networking.k8s.io/v1beta1\" is not understood",
		"apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n":              "f.yaml:1: apiVersion: \"extensions/v1beta1\" is not understood",
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\nspec: {}\n":         "f.yaml:2: kind: AdminNetworkPolicy was replaced upstream: write a ClusterNetworkPolicy (apiVersion: policy.networking.k8s.io/v1alpha2) with tier: Admin",
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: a}\nspec: {}\n": "f.yaml:2: kind: BaselineAdminNetworkPolicy was replaced upstream: write a ClusterNetworkPolicy (apiVersion: policy.networking.k8s.io/v1alpha2) with tier: Baseline",
		"apiVersion: policy.networking.k8s.io/v1\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {}\n":             "f.yaml:1: apiVersion: \"policy.networking.k8s.io/v1\" is not understood",
		"apiVersion: bocage.dev/v1\nkind: Guardrial\nmetadata: {name: a}\nspec: {}\n":                                      "f.yaml:2: kind: \"Guardrial\" is unknown: did you mean Guardrail?",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n":            "f.yaml:7: metadata.name: Pod a is declared at f.yaml:1 already",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelectr: {}}\n":             "f.yaml:4: spec.podSelectr: is unknown: did you mean podSelector?",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, lables: {}}\nspec: {podSelector: }\n":  "f.yaml:3: metadata.lables: is unknown: did you mean labels?",
	} {
		_, faults := reader.Read("f.yaml", []byte(text))
		if len(faults) == 0 || !strings.HasPrefix(faults[0].String(), want) {
			t.Errorf("%s\ngave %v\nwant %s", text, faults, want)
		}
	}
}

func TestNamesWithTricks(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"metadata: {name: p\u0430yments}\nspec: {mode: observe}\n", "U+0430 (Cyrillic) as character 2 of 8"},
		{"metadata: {name: \"pay\\u200bments\"}\nspec: {mode: observe}\n", "U+200B (invisible) as character 4 of 9"},
		{"metadata: {name: \"pay\\u202ements\"}\nspec: {mode: observe}\n", "U+202E (invisible: it turns the direction of what follows) as character 4 of 9"},
		{"metadata: {name: \"pay\\u00a0ments\"}\nspec: {mode: observe}\n", "U+00A0 (a kind of space) as character 4 of 9"},
		{"metadata: {name: pa\u0301yments}\nspec: {mode: observe}\n", "U+0301 (a mark on the character before it) as character 3 of 9"},
		{"metadata: {name: \uff50ay}\nspec: {mode: observe}\n", "U+FF50 (Latin) as character 1 of 3"},
		{"metadata: {name: a, labels: {\u0430pp: x}}\nspec: {mode: observe}\n", "the name holds U+0430 (Cyrillic) as character 1 of 3"},
		{"metadata: {name: a, labels: {app: \"x\\ty\"}}\nspec: {mode: observe}\n", "U+0009 (a control character) as character 2 of 3"},
		{"metadata: {name: a}\nspec: {m\u043ede: observe}\n", "did you mean mode?; the name holds U+043E (Cyrillic) as character 2 of 4"},
		{"metadata: {name: a}\nspec: {mode: observe, workload: {matchLabels: {app: w\u0435b}}}\n", "U+0435 (Cyrillic) as character 2 of 3"},
	} {
		_, faults := Read("f.yaml", []byte(head+"kind: Scope\n"+test.text))
		if len(faults) == 0 || !strings.Contains(faults.Error(), test.want) {
			t.Errorf("%q gave\n%v\nwant %s", test.text, faults, test.want)
		}
	}
}

// TestLargeFiles: a file is refused with a reason, or read whole where more is allowed.
func TestLargeFiles(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: big}\nspec:\n  podSelector: {}\n  ingress:\n")
	for i := range 100_000 {
		fmt.Fprintf(&b, "  - from:\n    - podSelector:\n        matchLabels:\n          app: a%d\n    ports:\n    - port: %d\n      protocol: TCP\n", i, 1+i%60000)
	}
	if _, faults := Read("f.yaml", []byte(b.String())); len(faults) != 1 || faults[0].String() != "f.yaml:1: is larger than 10 MiB: split it" {
		t.Errorf("%v", faults)
	}
	documents, faults := Reader{Namespace: "default", MaxBytes: 64 << 20}.Read("f.yaml", []byte(b.String()))
	if len(faults) > 0 || len(documents) != 1 || len(documents[0].Resource.(*bocage.NetworkPolicy).Spec.Ingress) != 100_000 {
		t.Errorf("%d documents, %v", len(documents), faults)
	}
}
