package kubernetes_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// TestReach goes through the tables of testdata: each case has policies and what
// reaches what under them. The evaluator and the compiled tables must both say so.
func TestReach(t *testing.T) {
	for tables, cluster := range map[string]string{
		"networkpolicies.txtar": "namespaces.yaml",
		"rules.txtar":           "houses.yaml",
		"tiers.txtar":           "houses.yaml",
	} {
		archive, err := txtar.ParseFile(filepath.Join("testdata", tables))
		if err != nil {
			t.Fatal(err)
		}
		objects, err := os.ReadFile(filepath.Join("testdata", cluster))
		if err != nil {
			t.Fatal(err)
		}
		policies := map[string][]byte{}
		for _, file := range archive.Files {
			name, part, _ := strings.Cut(file.Name, ": ")
			if part == "policies" {
				policies[name] = file.Data
				continue
			}
			if part != "reach" || policies[name] == nil {
				t.Fatalf("%s: %q is neither policies nor, after them, reach", tables, file.Name)
			}
			t.Run(name, func(t *testing.T) {
				c := newCase(t, string(objects)+"\n---\n"+string(policies[name]))
				if cells := c.check(t, string(file.Data)); cells == 0 {
					t.Error("the table is empty")
				}
			})
		}
	}
}

// reachCase is one cluster under some policies.
type reachCase struct {
	objects   kubernetes.Objects
	named     map[string]netip.Addr // "namespace/name" of a Pod
	evaluator *kubernetes.Evaluator
	ruleset   *bocage.Ruleset
}

func newCase(t *testing.T, documents string) *reachCase {
	t.Helper()
	c := &reachCase{named: map[string]netip.Addr{}}
	identity := bocage.IdentityFirst
	trees, faults := manifest.Parse("case.yaml", []byte(documents))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for _, tree := range trees {
		data := tree.JSON()
		var kind bocage.TypeMeta
		if err := json.Unmarshal(data, &kind); err != nil {
			t.Fatal(err)
		}
		var faults bocage.Faults
		switch kind.Kind {
		case "Pod":
			var pod kubernetes.Pod
			pod, faults = kubernetes.ReadPod(data)
			c.named[pod.NamespacedName()] = pod.Spec.Addresses[0]
			if !pod.HostNetwork && !pod.Ended {
				pod.Status.Identity = identity
				identity++
				c.objects.Workloads = append(c.objects.Workloads, pod.Workload)
			}
		case "Node":
			var host *bocage.Host
			host, faults = kubernetes.ReadNode(data)
			c.objects.Hosts = append(c.objects.Hosts, host)
		case "Namespace":
			c.objects.Namespaces = append(c.objects.Namespaces, read[bocage.Namespace](t, data))
		case "NetworkPolicy":
			p := read[bocage.NetworkPolicy](t, data)
			c.objects.NetworkPolicies, faults = append(c.objects.NetworkPolicies, p), p.Validate()
		case "ClusterNetworkPolicy":
			p := read[bocage.ClusterNetworkPolicy](t, data)
			c.objects.ClusterNetworkPolicies, faults = append(c.objects.ClusterNetworkPolicies, p), p.Validate()
		default:
			t.Fatalf("nobody reads a %s", kind.Kind)
		}
		if len(faults) > 0 {
			t.Fatalf("%v:\n%s", faults, data)
		}
	}
	c.evaluator = kubernetes.NewEvaluator(c.objects)
	c.ruleset = compile.Compile(compile.Input{Namespaces: c.objects.Namespaces, Workloads: c.objects.Workloads, Hosts: c.objects.Hosts,
		NetworkPolicies: c.objects.NetworkPolicies, ClusterNetworkPolicies: c.objects.ClusterNetworkPolicies}).Ruleset()
	return c
}

func read[T any](t *testing.T, data []byte) *T {
	t.Helper()
	object := new(T)
	if err := json.Unmarshal(data, object); err != nil {
		t.Fatalf("%v:\n%s", err, data)
	}
	return object
}

// check goes through lines such as "TCP/80 x/* -> 192.0.2.1 yes" and counts the
// cells. A Pod reaches itself whatever they say: see kubernetes.Flow.
func (c *reachCase) check(t *testing.T, table string) int {
	t.Helper()
	type cell struct{ ports, from, to string }
	var cells []cell
	expected := map[cell]bool{}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) != 5 || fields[2] != "->" || fields[4] != "yes" && fields[4] != "no" {
			t.Fatalf("%q is not such as TCP/80 x/* -> y/a yes", line)
		}
		for _, from := range c.ends(t, fields[1]) {
			for _, to := range c.ends(t, fields[3]) {
				this := cell{fields[0], from, to}
				if _, again := expected[this]; !again {
					cells = append(cells, this)
				}
				expected[this] = fields[4] == "yes"
			}
		}
	}
	for _, this := range cells {
		f := c.flow(t, this.ports, this.from, this.to)
		result := c.evaluator.Evaluate(f)
		if f.From != nil && f.From == f.To {
			if !result.Allows {
				t.Errorf("%v: a Pod does not reach itself", this)
			}
			continue
		}
		if f.From == nil && f.To == nil {
			continue // nobody's business
		}
		if result.Allows != expected[this] {
			t.Errorf("%v: evaluated %t, egress %v, ingress %v", this, result.Allows, result.Egress, result.Ingress)
		}
		_, reason := c.ruleset.Decide(bocage.Flow{Source: f.Source, Destination: f.Destination, Protocol: f.Protocol, DestinationPort: f.Port})
		if reason.Would.Allowed() != expected[this] {
			t.Errorf("%v: compiled %s (%s)", this, reason.Would, reason.Code)
		}
	}
	return len(cells)
}

// ends expands *, namespace/*, namespace/name or an address.
func (c *reachCase) ends(t *testing.T, pattern string) []string {
	t.Helper()
	if _, err := netip.ParseAddr(pattern); err == nil {
		return []string{pattern}
	}
	var out []string
	for name := range c.named {
		namespace, _, _ := strings.Cut(name, "/")
		if pattern == "*" || pattern == name || pattern == namespace+"/*" {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%q is nobody", pattern)
	}
	slices.Sort(out)
	return out
}

func (c *reachCase) flow(t *testing.T, ports, from, to string) kubernetes.Flow {
	t.Helper()
	name, number, _ := strings.Cut(ports, "/")
	protocol, err := bocage.ParseProtocol(name)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil && number != "" {
		t.Fatal(err)
	}
	f := kubernetes.Flow{Protocol: protocol, Port: uint16(port)}
	f.Source, f.From = c.end(from)
	f.Destination, f.To = c.end(to)
	return f
}

func (c *reachCase) end(name string) (netip.Addr, *bocage.Workload) {
	address, known := c.named[name]
	if !known {
		return netip.MustParseAddr(name), nil
	}
	for _, w := range c.objects.Workloads {
		if w.NamespacedName() == name {
			return address, w
		}
	}
	return address, nil
}
