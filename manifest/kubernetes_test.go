package manifest

import (
	"fmt"
	"slices"
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
		"apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n":            "f.yaml:1: apiVersion: \"networking.k8s.io/v1beta1\" is not understood",
		"apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n":                   "f.yaml:1: apiVersion: \"extensions/v1beta1\" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1",
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\nspec: {}\n":              "f.yaml:2: kind: AdminNetworkPolicy was replaced upstream: write a ClusterNetworkPolicy (apiVersion: policy.networking.k8s.io/v1alpha2) with tier: Admin",
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: a}\nspec: {}\n":      "f.yaml:2: kind: BaselineAdminNetworkPolicy was replaced upstream: write a ClusterNetworkPolicy (apiVersion: policy.networking.k8s.io/v1alpha2) with tier: Baseline",
		"apiVersion: policy.networking.k8s.io/v1\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {}\n":                  "f.yaml:1: apiVersion: \"policy.networking.k8s.io/v1\" is not understood",
		"apiVersion: bocage.dev/v1\nkind: Guardrial\nmetadata: {name: a}\nspec: {}\n":                                           "f.yaml:2: kind: \"Guardrial\" is unknown: did you mean Guardrail?",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {b: c}}\n": "f.yaml:7: metadata.name: Pod a is declared at f.yaml:1 already, and not just the same",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelectr: {}}\n":                  "f.yaml:4: spec.podSelectr: is unknown: did you mean podSelector?",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, lables: {}}\nspec: {podSelector: }\n":       "f.yaml:3: metadata.lables: is unknown: did you mean labels?",
	} {
		_, faults := reader.Read("f.yaml", []byte(text))
		if len(faults) == 0 || !strings.HasPrefix(faults[0].String(), want) {
			t.Errorf("%s\ngave %v\nwant %s", text, faults, want)
		}
	}
}

// TestMisspelledKinds: what was meant to be a policy, or somebody whom policies are
// about, is never one of the world's other kinds.
func TestMisspelledKinds(t *testing.T) {
	for _, test := range []struct{ version, kind, want string }{
		{"networking.k8s.io/v1", "NetworkPolcy", `kind: "NetworkPolcy" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "networkpolicy", `kind: "networkpolicy" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "NETWORKPOLICY", `kind: "NETWORKPOLICY" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "NetworkPolicies", `kind: "NetworkPolicies" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "Network-Policy", `kind: "Network-Policy" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "NetworkPolicy ", `kind: "NetworkPolicy " is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "NewtorkPlicy", `kind: "NewtorkPlicy" is unknown: did you mean NetworkPolicy?`},
		{"networking.k8s.io/v1", "NetworkPolicyLst", `kind: "NetworkPolicyLst" is unknown: did you mean NetworkPolicyList?`},
		{"Networking.K8s.io/v1", "NetworkPolicy", `apiVersion: "Networking.K8s.io/v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`},
		{"networking.k8s.oi/v1", "NetworkPolicy", `apiVersion: "networking.k8s.oi/v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`},
		{"networking.k8s.oi/v1", "NetworkPolcy", `apiVersion: "networking.k8s.oi/v1" has no NetworkPolcy: did you mean NetworkPolicy (apiVersion: networking.k8s.io/v1)?`},
		{"networking/v1", "NetworkPolicy", `apiVersion: "networking/v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`},
		{"v1", "NetworkPolicy", `apiVersion: "v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`},
		{"apps/v1", "NetworkPolicy", `apiVersion: "apps/v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`},
		{"policy/v1", "ClusterNetworkPolicy", `apiVersion: "policy/v1" has no ClusterNetworkPolicy: write apiVersion: policy.networking.k8s.io/v1alpha2`},
		{"networking.k8s.io/v1", "ClusterNetworkPolicy", `apiVersion: "networking.k8s.io/v1" has no ClusterNetworkPolicy: write apiVersion: policy.networking.k8s.io/v1alpha2`},
		{"policy.networking.k8s.io/v1alpha2", "clusternetworkpolicy", `kind: "clusternetworkpolicy" is unknown: did you mean ClusterNetworkPolicy?`},
		{"v1", "pod", `kind: "pod" is unknown: did you mean Pod?`},
		{"v1", "Pods", `kind: "Pods" is unknown: did you mean Pod?`},
		{"v1", "namespace", `kind: "namespace" is unknown: did you mean Namespace?`},
		{"v1", "Namespce", `kind: "Namespce" is unknown: did you mean Namespace?`},
		{"v1", "node", `kind: "node" is unknown: did you mean Node?`},
		{"v1", "list", `kind: "list" is unknown: did you mean List?`},
		{"v1", "Lst", `kind: "Lst" is unknown: did you mean List?`},
		{"v1beta1", "Pod", `apiVersion: "v1beta1" has no Pod: write apiVersion: v1`},
		{"V1", "Pod", `apiVersion: "V1" has no Pod: write apiVersion: v1`},
		{"v1", "Guardrails", ""},
		{"bocage.io/v1", "Guardrail", `apiVersion: "bocage.io/v1" is not understood: did you mean bocage.dev/v1?`},
		{"bocage.io/v1", "Whatever", `apiVersion: "bocage.io/v1" is not understood: did you mean bocage.dev/v1?`},
		{"bocage/v1", "Guardrail", `apiVersion: "bocage/v1" is not understood: did you mean bocage.dev/v1?`},
		{"bocgae.dev/v1", "Guardrail", `apiVersion: "bocgae.dev/v1" is not understood: did you mean bocage.dev/v1?`},
		// The world's own.
		{"v1", "Service", ""}, {"v1", "ConfigMap", ""}, {"v1", "Secret", ""}, {"v1", "PodTemplate", ""}, {"v1", "Endpoints", ""},
		{"v1", "LimitRange", ""}, {"v1", "ServiceAccount", ""}, {"v1", "ResourceQuota", ""}, {"v1", "Event", ""}, {"v1", "Status", ""},
		{"apps/v1", "Deployment", ""}, {"apps/v1", "ReplicaSet", ""}, {"batch/v1", "Job", ""}, {"policy/v1", "PodDisruptionBudget", ""},
		{"policy/v1beta1", "PodSecurityPolicy", ""}, {"networking.k8s.io/v1", "Ingress", ""}, {"networking.k8s.io/v1", "IngressClass", ""},
		{"networking.k8s.io/v1", "IPAddress", ""}, {"networking.k8s.io/v1", "ServiceCIDR", ""}, {"rbac.authorization.k8s.io/v1", "RoleBinding", ""},
		{"events.k8s.io/v1", "Event", ""}, {"metrics.k8s.io/v1beta1", "PodMetrics", ""}, {"node.k8s.io/v1", "RuntimeClass", ""},
		{"scheduling.k8s.io/v1alpha1", "Workload", ""}, {"app.k8s.io/v1beta1", "Application", ""}, {"argoproj.io/v1alpha1", "Application", ""},
		{"cilium.io/v2", "CiliumNetworkPolicy", ""}, {"cilium.io/v2", "CiliumNode", ""}, {"projectcalico.org/v3", "NetworkPolicy", ""},
		{"crd.antrea.io/v1beta1", "ClusterNetworkPolicy", ""}, {"networking.gke.io/v1", "FQDNNetworkPolicy", ""}, {"networking.istio.io/v1", "Sidecar", ""},
		{"k8s.cni.cncf.io/v1beta1", "MultiNetworkPolicy", ""}, {"example.com/v1", "Zone", ""}, {"gateway.networking.k8s.io/v1", "HTTPRoute", ""},
		{"discovery.k8s.io/v1", "EndpointSlice", ""}, {"coordination.k8s.io/v1", "Lease", ""}, {"cluster.x-k8s.io/v1beta1", "Machine", ""},
	} {
		var foreign int
		reader := Reader{Namespace: "default", Foreign: func(*Tree) bocage.Faults { foreign++; return nil }}
		text := fmt.Sprintf("apiVersion: %q\nkind: %q\nmetadata: {name: a}\nspec: {}\n", test.version, test.kind)
		_, faults := reader.Read("f.yaml", []byte(text))
		switch {
		case test.want == "" && (len(faults) > 0 || foreign != 1):
			t.Errorf("%s %s is one of the world's kinds: %v", test.version, test.kind, faults)
		case test.want != "" && (len(faults) != 1 || !strings.HasSuffix(faults[0].String(), test.want)):
			t.Errorf("%s %s gave %v\nwant %s", test.version, test.kind, faults, test.want)
		}
	}
	// Where nothing foreign is read, a policy that was meant is named likewise.
	_, faults := Read("f.yaml", []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicies\nmetadata: {name: a}\nspec: {}\n"))
	if len(faults) != 1 || faults[0].Message != `"NetworkPolicies" is unknown: did you mean NetworkPolicy?` {
		t.Error(faults)
	}
}

// TestYesAndNo: where YAML leaves open what a word is, it is what Kubernetes reads.
func TestYesAndNo(t *testing.T) {
	policy := func(selector, more string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n  podSelector:\n    matchLabels:\n      " + selector + "\n" + more
	}
	for _, word := range []string{"yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"} {
		for text, want := range map[string]string{
			policy("legacy: "+word, ""): `f.yaml:7: spec.podSelector.matchLabels[legacy]: is true or false where text is needed: quote it, as "` + word + `"`,
			policy(word+": legacy", ""): `f.yaml:7: spec.podSelector.matchLabels: ` + word + ` is true or false where text is needed: quote it, as "` + word + `"`,
			policy("a: b", "    matchExpressions:\n    - {key: legacy, operator: In, values: [a, "+word+"]}\n"):    `f.yaml:9: spec.podSelector.matchExpressions[0].values[1]: is true or false where text is needed: quote it, as "` + word + `"`,
			policy("a: b", "    matchExpressions:\n    - {key: "+word+", operator: Exists}\n"):                     `f.yaml:9: spec.podSelector.matchExpressions[0].key: is true or false where text is needed: quote it, as "` + word + `"`,
			policy("a: b", "    matchExpressions:\n    - {key: '"+word+"', operator: In, values: ['"+word+"']}\n"): "",
			policy("legacy: '"+word+"'", ""):   "",
			policy("legacy: \""+word+"\"", ""): "",
			policy("legacy: !!str "+word, ""):  "",
			policy("'"+word+"': a", ""):        "",
			policy("legacy: "+word+"x", ""):    "",
		} {
			_, faults := Read("f.yaml", []byte(text))
			if got := faults.Error(); len(faults) > 1 || want == "" && len(faults) > 0 || want != "" && !strings.HasSuffix(got, want) {
				t.Errorf("%s\ngave %v\nwant %s", text, faults, want)
			}
		}
	}
	// So in every place of text, of our own kinds too.
	for name, want := range map[string]string{
		"no": `f.yaml:3: metadata.name: is true or false where text is needed: quote it, as "no"`, "Off": `f.yaml:3: metadata.name: is true or false where text is needed: quote it, as "Off"`,
		"y": "", "N": `f.yaml:3: metadata.name: "N" is not a lower-case DNS name of at most 253 characters`,
		"'y'": "", "\"n\"": "", "'no'": "", "yes1": "",
	} {
		_, faults := Read("f.yaml", []byte(head+"kind: Scope\nmetadata: {name: "+name+"}\nspec: {mode: observe}\n"))
		if len(faults) > 1 || len(faults) == 1 && faults[0].String() != want || len(faults) == 0 && want != "" {
			t.Errorf("%s gave %v, want %s", name, faults, want)
		}
	}
	for text, want := range map[string][]string{
		head + "kind: Application\nmetadata: {name: a, namespace: a}\nspec:\n  workload: {matchLabels: {app: a}}\n  provides: [{name: p, port: 80, to: {}, toNamespaces: ['x',\n    On]}]\n  consumes: [{external: no, port: y}]\n": {
			`f.yaml:7: spec.provides[0].toNamespaces[1]: is true or false where text is needed: quote it, as "On"`,
			`f.yaml:8: spec.consumes[0].external: is true or false where text is needed: quote it, as "no"`,
			`f.yaml:8: spec.consumes[0].port: is text where a whole number is needed`,
		},
	} {
		_, faults := Read("f.yaml", []byte(text))
		var got []string
		for _, fault := range faults {
			got = append(got, fault.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s\ngave %q\nwant %q", text, got, want)
		}
	}
	// So in kinds of which others know the fields.
	foreign := Reader{Foreign: func(t *Tree) (faults bocage.Faults) {
		if _, text := t.Object()["metadata"].(map[string]any)["labels"].(map[string]any)["legacy"].(string); !text {
			faults.Add("metadata.labels[legacy]", "is no text")
		}
		return faults
	}}
	for labels, want := range map[string]string{
		"legacy: off":            `f.yaml:3: metadata.labels[legacy]: is true or false where text is needed: quote it, as "off"`,
		"legacy: 'off'":          "",
		"legacy: 'off', on: a":   `f.yaml:3: metadata.labels: on is true or false where text is needed: quote it, as "on"`,
		"legacy: 'off', 'on': a": "",
	} {
		_, faults := foreign.Read("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {"+labels+"}}\n"))
		if len(faults) > 1 || len(faults) == 1 && faults[0].String() != want || len(faults) == 0 && want != "" {
			t.Errorf("%s gave %v, want %s", labels, faults, want)
		}
	}
	// In the place of a bool they are one, and in JSON they are text.
	test := head + "kind: PolicyTest\nmetadata: {name: a}\nspec:\n  blocks: %s\n  cases: [{from: a/b, to: c/d, port: 1, expect: {reach: allow}}]\n"
	for word, want := range map[string]bool{"yes": true, "On": true, "Y": true, "TRUE": true, "no": false, "OFF": false, "n": false, "!!bool yes": true} {
		documents, faults := Read("f.yaml", []byte(fmt.Sprintf(test, word)))
		if len(faults) > 0 || documents[0].Resource.(*bocage.PolicyTest).Spec.Blocks != want {
			t.Errorf("%s is read as %v, %v", word, documents, faults)
		}
	}
	if _, faults := Read("f.json", []byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"no","labels":{"y":"yes"}},"spec":{"mode":"observe"}}`)); len(faults) > 0 {
		t.Error(faults)
	}
}

// TestMarksOfByteOrder: files that were put together keep the mark with which each
// of them began.
func TestMarksOfByteOrder(t *testing.T) {
	scope := func(name string) string {
		return "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: " + name + "}\nspec: {mode: observe}\n"
	}
	const mark = "\ufeff"
	for _, text := range []string{
		mark + scope("a") + "---\n" + mark + scope("b"),
		mark + scope("a") + mark + "---\n" + scope("b"),
		scope("a") + "---\r\n# b\n\n" + mark + mark + scope("b"),
		scope("a") + "...\n" + mark + "---\n" + mark + scope("b"),
		scope("a") + "---\n" + mark + "# nothing\n---\n" + scope("b"),
		`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a"},"spec":{"mode":"observe"}}` + "\n" + mark +
			`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"b"},"spec":{"mode":"observe"}}`,
	} {
		documents, faults := Read("f", []byte(text))
		if len(faults) > 0 || len(documents) != 2 {
			t.Errorf("%q gave %d documents, %v", text, len(documents), faults)
		}
	}
	// What stands behind the end of a document is never passed over in silence.
	if _, faults := Read("f.yaml", []byte("{apiVersion: bocage.dev/v1, kind: Scope, metadata: {name: a}, spec: {mode: observe}}\n{more: 1}\n")); len(faults) != 1 || faults[0].Source != "f.yaml:2" {
		t.Error(faults)
	}
	// Within a document it is a character like others, and named.
	_, faults := Read("f.yaml", []byte(scope("a")+mark+"more: 1\n"))
	if !strings.Contains(faults.Error(), "U+FEFF") {
		t.Error(faults)
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
