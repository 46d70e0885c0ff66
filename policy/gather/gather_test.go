package gather

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

func gathered(t *testing.T, options Options, texts ...string) *Gathered {
	t.Helper()
	g := New(options)
	for i, text := range texts {
		g.Read(string(rune('a'+i))+".yaml", []byte(text))
	}
	out, faults := g.Done()
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return out
}

func pod(namespace, name, rest string) string {
	return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: " + namespace + "}\n" + rest
}

const (
	workload = "---\napiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: w, namespace: a}\nspec: {host: h, addresses: [10.0.0.9]}\n"
	isolate  = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {}}\n"
	scope    = "---\napiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s}\nspec: {mode: enforce}\n"
)

func TestPodsBecomeWorkloads(t *testing.T) {
	out := gathered(t, Options{}, pod("b", "later", "status: {podIP: 10.0.0.2, phase: Running}\n")+
		pod("a", "none", "")+
		pod("a", "own", "spec: {hostNetwork: true, nodeName: n1}\nstatus: {hostIP: 192.0.2.1, podIP: 192.0.2.1}\n")+
		pod("a", "elsewhere", "spec: {hostNetwork: true, nodeName: n9}\n")+
		pod("a", "elsewhere-too", "spec: {hostNetwork: true, nodeName: n9}\n")+
		pod("a", "nowhere", "spec: {hostNetwork: true}\n")+
		pod("a", "done", "status: {phase: Succeeded, podIP: 10.0.0.2}\n")+
		"---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {zone: z}}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.2}]}\n",
		workload)
	var got []string
	for _, w := range out.Input.Workloads {
		got = append(got, w.NamespacedName()+" "+w.Spec.Orchestrator)
		if w.Status.Identity < bocage.IdentityFirst || len(w.Spec.Addresses) == 0 {
			t.Errorf("%s: identity %d, addresses %v", w.NamespacedName(), w.Status.Identity, w.Spec.Addresses)
		}
	}
	if want := []string{"a/none kubernetes", "a/w ", "b/later kubernetes"}; !slices.Equal(got, want) {
		t.Errorf("workloads %q, want %q", got, want)
	}
	if h := out.Input.Hosts; len(h) != 2 || !slices.Equal(h[0].Spec.Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		t.Errorf("the node has what its Pods say: %+v", h)
	}
	names := out.Names
	if !slices.Equal(names["a/own"], []netip.Addr{netip.MustParseAddr("192.0.2.1")}) || len(names["a/elsewhere"]) == 0 ||
		!slices.Equal(names["a/elsewhere"], names["a/elsewhere-too"]) || slices.Equal(names["a/elsewhere"], names["a/nowhere"]) {
		t.Errorf("Pods on their node's network: %v", names)
	}
	if out.Unusable["a/done"] == "" {
		t.Error("a Pod that has ended is there")
	}
}

func TestInventedAddressesAreNobodys(t *testing.T) {
	var b strings.Builder
	for i := range 300 {
		b.WriteString(pod("a", "p"+string(rune('a'+i/26%26))+string(rune('a'+i%26))+string(rune('a'+i/676)), ""))
	}
	b.WriteString(pod("z", "has", "status: {podIPs: [{ip: 240.0.0.5}, {ip: \"100::7\"}]}\n"))
	out := gathered(t, Options{}, b.String())
	seen := map[netip.Addr]string{}
	for _, w := range out.Input.Workloads {
		for _, a := range w.Spec.Addresses {
			if other, taken := seen[a]; taken {
				t.Errorf("%s is the address of %s and %s", a, other, w.Name)
			}
			seen[a] = w.Name
		}
	}
	if len(seen) != 602 {
		t.Errorf("%d addresses", len(seen))
	}
}

func TestDefaults(t *testing.T) {
	for _, test := range []struct {
		name, option string
		texts        string
		workload     string
		pod          string
		note         bool
	}{
		{"Kubernetes' policies alone", "", workload + isolate + pod("a", "p", ""), "kubernetes", "kubernetes", true},
		{"with a policy of our own", "", workload + isolate + scope + pod("a", "p", ""), "", "kubernetes", false},
		{"without any policy", "auto", workload + pod("a", "p", ""), "", "kubernetes", false},
		{"as people say", "kubernetes", workload + scope + pod("a", "p", ""), "kubernetes", "kubernetes", false},
		{"deny", "deny", workload + isolate + pod("a", "p", ""), "", "", false},
	} {
		out := gathered(t, Options{Default: test.option}, test.texts)
		orchestrators := map[string]string{}
		for _, w := range out.Input.Workloads {
			orchestrators[w.Name] = w.Spec.Orchestrator
		}
		noted := slices.ContainsFunc(out.Notes, func(n string) bool { return strings.Contains(n, "Workloads count as Pods") })
		if orchestrators["w"] != test.workload || orchestrators["p"] != test.pod || noted != test.note {
			t.Errorf("%s: %v, notes %q", test.name, orchestrators, out.Notes)
		}
	}
}

func TestEveryFaultAtOnce(t *testing.T) {
	g := New(Options{Strict: true, Default: "perhaps"})
	g.Read("a.yaml", []byte(workload+strings.Replace(workload, "10.0.0.9", "10.0.0.8", 1)+pod("a", "w", "")+pod("a", "Bad", "")+pod("a", "p", "status: {podIP: ten}\n")+
		"---\napiVersion: v1\nkind: Node\nmetadata: {labels: {a: b}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\napiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s}\n"))
	g.Read("b.yaml", []byte("a: [\n"))
	g.Path(filepath.Join(t.TempDir(), "none.yaml"))
	_, faults := g.Done()
	text := faults.Error()
	for _, want := range []string{
		"a.yaml:9: metadata.name: Workload a/w is declared at a.yaml:2 already",
		"a.yaml:12: metadata.name: a/w is the name of what is declared at a.yaml:2 already",
		`metadata.name: "Bad" is not a lower-case DNS name`,
		`a.yaml:23: status.podIP: "ten" is not an IP address`,
		"metadata.name: a Node needs a name",
		"kind: Service (v1) is not read here",
		`spec.mode: "" is neither observe nor enforce`,
		"b.yaml:1: is not YAML",
		"none.yaml: no such file or directory",
		`default "perhaps" is none of auto, kubernetes, deny and declared`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestNotes(t *testing.T) {
	out := gathered(t, Options{}, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: e}\n"+
		"---\napiVersion: bocage.dev/v1\nkind: Guardrail\nmetadata: {name: g}\nspec: {never: [{from: {namespaces: [a]}}], exceptions: {allowed: true, approvers: [ann]}}\n"+
		"---\napiVersion: bocage.dev/v1\nkind: Exception\nmetadata: {name: x}\nspec: {guardrail: g, match: {from: {namespaces: [a]}}, until: 2030-01-01T00:00:00Z}\n"+
		"---\napiVersion: bocage.dev/v1\nkind: Rollout\nmetadata: {name: default}\nspec: {}\n")
	text := strings.Join(out.Notes, "\n")
	for _, want := range []string{"2 ConfigMap left out (a.yaml:5)", "1 Service left out (a.yaml:1): policies are about the workloads", "Exception x counts as approved: in force it waits for ann"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// TestServices: who asks about a Service is told whom to name instead.
func TestServices(t *testing.T) {
	out := gathered(t, Options{}, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: x, labels: {app: a, more: b}}\nstatus: {podIP: 10.0.0.1}\n"+
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: x}\nspec: {selector: {app: a}, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, \"fd00::7\"]}\n"+
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: p, namespace: x}\nspec: {selector: {app: a}, clusterIP: None}\n"+
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: outside}\nspec: {type: ExternalName, externalName: example.org}\n")
	want := map[string]string{
		"x/web":           "x/web is a Service, and policies decide about the Pods behind it: name one of those, such as x/p",
		"10.96.0.7":       "10.96.0.7 is the address of Service x/web, and policies decide about the Pods behind it: name one of those, such as x/p",
		"fd00::7":         "fd00::7 is the address of Service x/web, and policies decide about the Pods behind it: name one of those, such as x/p",
		"default/outside": "default/outside is a Service, and policies decide about the Pods behind it: name those",
	}
	if !maps.Equal(out.Unusable, want) {
		t.Errorf("%v", out.Unusable)
	}
}

func TestPlacesOfFields(t *testing.T) {
	out := gathered(t, Options{}, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec:\n  podSelector: {}\n  ingress:\n  - from: []\n  - ports:\n    - port: 80\n")
	file, line := out.Place(bocage.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: "p", Field: "spec.ingress[1]"})
	if file != "a.yaml" || line != 8 {
		t.Errorf("%s:%d", file, line)
	}
	if file, line := out.Place(bocage.Ref{Kind: "Guardrail", Name: "g", Source: "g.yaml:7"}); file != "g.yaml" || line != 7 {
		t.Errorf("of another object: %s:%d", file, line)
	}
}

// TestControllers: what will be made of templates is there before it is made.
func TestControllers(t *testing.T) {
	controller := func(version, kind, name, spec string) string {
		return "---\napiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: " + name + ", namespace: a}\nspec: " + spec + "\n"
	}
	made := "template: {metadata: {labels: {app: %s}}, spec: {containers: [{ports: [{name: web, containerPort: 80}]}]}}"
	of := func(app string) string { return strings.ReplaceAll(made, "%s", app) }
	out := gathered(t, Options{}, controller("apps/v1", "Deployment", "web", "{replicas: 2, "+of("web")+"}")+
		controller("apps/v1", "StatefulSet", "db", "{"+of("db")+"}")+
		controller("apps/v1", "DaemonSet", "agent", "{"+of("agent")+"}")+
		controller("apps/v1", "Deployment", "idle", "{replicas: 0, "+of("idle")+"}")+
		controller("apps/v1", "Deployment", "large", "{replicas: 1000, "+of("large")+"}")+
		controller("apps/v1", "Deployment", "there", "{replicas: 3, "+of("there")+"}")+
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: there-5d4-x, namespace: a, labels: {app: there, pod-template-hash: 5d4}}\n"+
		"---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: web-77, namespace: a, ownerReferences: [{kind: Deployment, name: web, controller: true}]}\nspec: {replicas: 2, "+of("web")+"}\n"+
		controller("batch/v1", "CronJob", "night", "{jobTemplate: {spec: {"+of("night")+"}}}")+
		"---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n")
	var names []string
	for _, w := range out.Input.Workloads {
		if !strings.HasPrefix(w.Name, "large-") {
			names = append(names, w.NamespacedName()+" "+w.Labels["app"]+" "+w.Spec.Host)
		}
	}
	want := []string{"a/agent-0 agent n1", "a/agent-1 agent n2", "a/db-0 db ", "a/night-0 night ", "a/there-5d4-x there ", "a/web-0 web ", "a/web-1 web "}
	if !slices.Equal(names, want) || len(out.Input.Workloads) != len(want)+100 {
		t.Errorf("%d workloads, %q", len(out.Input.Workloads), names)
	}
	i := slices.IndexFunc(out.Input.Workloads, func(w *bocage.Workload) bool { return w.Name == "db-0" })
	if w := out.Input.Workloads[i]; w.Labels["apps.kubernetes.io/pod-index"] != "0" || len(w.Spec.Ports) != 1 || len(w.Spec.Addresses) == 0 || w.Spec.Orchestrator != bocage.OrchestratorKubernetes {
		t.Errorf("%+v", w)
	}
	text := strings.Join(out.Notes, "\n")
	if !strings.Contains(out.Unusable["a/web"], "such as a/web-0") || !strings.Contains(out.Unusable["a/there"], "such as a/there-5d4-x") {
		t.Errorf("%v", out.Unusable)
	}
	if !strings.Contains(out.Unusable["a/idle"], "Deployment a/idle has no replicas") || !strings.Contains(text, "Deployment a/large has 1000 replicas, which are alike: 100 stand for them") ||
		!strings.Contains(text, "106 Pods stand for those that 5 controllers") {
		t.Errorf("%v\n%s", out.Unusable, text)
	}
	g := New(Options{})
	g.Read("f.yaml", []byte(controller("apps/v1", "Deployment", "none", "{}")+controller("apps/v1", "Deployment", "odd", "{"+strings.ReplaceAll(of("a"), "80", "0")+"}")))
	_, faults := g.Done()
	for _, want := range []string{"f.yaml:5: spec.template: is missing", "f.yaml:10: spec.template.spec.containers[0].ports[0].containerPort: 0 is not a port"} {
		if !strings.Contains(faults.Error(), want) {
			t.Errorf("%q is missing in %v", want, faults)
		}
	}
}

// TestOrderOfFiles: the same files in any order and cut give the same input.
func TestOrderOfFiles(t *testing.T) {
	texts := []string{workload, isolate, pod("b", "x", ""), pod("a", "v", ""), pod("c", "z", "spec: {hostNetwork: true}\n"),
		"---\napiVersion: v1\nkind: Node\nmetadata: {name: q}\n", "---\napiVersion: v1\nkind: Node\nmetadata: {name: m}\n"}
	var first string
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		r.Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
		out := gathered(t, Options{}, strings.Join(texts, ""))
		for _, w := range out.Input.Workloads {
			w.Annotations = nil
		}
		for _, h := range out.Input.Hosts {
			h.Annotations = nil
		}
		data, err := json.Marshal([]any{out.Input.Workloads, out.Input.Hosts, out.Names})
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(data)
		}
		if string(data) != first {
			t.Fatalf("another order gives\n%s\nbefore it was\n%s", data, first)
		}
	}
}

// FuzzGather: whatever files hold, there is either input or a fault.
func FuzzGather(f *testing.F) {
	f.Add([]byte(workload + isolate + pod("a", "p", "status: {podIP: 10.0.0.1}\n")))
	f.Add([]byte(`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"p"}},{"metadata":{"name":"p"},"spec":7}]}`))
	f.Add([]byte("apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: \"fe80::1%eth0\"}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g := New(Options{})
		g.Read("f.yaml", data)
		out, faults := g.Done()
		if (out == nil) == (len(faults) == 0) {
			t.Fatalf("input %v, faults %v", out, faults)
		}
	})
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "w.yaml"), []byte(workload), 0o600); err != nil {
		t.Fatal(err)
	}
	g := New(Options{})
	g.Path(dir)
	if out, faults := g.Done(); len(faults) > 0 || len(out.Input.Workloads) != 1 {
		t.Errorf("%v", faults)
	}
}
