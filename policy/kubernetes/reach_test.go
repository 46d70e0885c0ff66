package kubernetes_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
	"bocage.dev/bocage/policy/policytest"
)

// TestReach goes through the tables of testdata: each case has policies and what
// reaches what under them. The evaluator and the compiled tables must both say so.
func TestReach(t *testing.T) {
	for tables, cluster := range map[string]string{
		"networkpolicies.txtar": "namespaces.yaml",
		"rules.txtar":           "houses.yaml",
		"tiers.txtar":           "houses.yaml",
	} {
		cases, err := policytest.ReadReachCases(filepath.Join("testdata", tables))
		if err != nil {
			t.Fatal(err)
		}
		objects, err := os.ReadFile(filepath.Join("testdata", cluster))
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range cases {
			t.Run(table.Name, func(t *testing.T) {
				c := newCase(t, string(objects)+"\n---\n"+table.Policies)
				if cells := c.check(t, table); cells == 0 {
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

// check goes through the table's cells and counts them. A Pod reaches itself
// whatever they say: see kubernetes.Flow.
func (c *reachCase) check(t *testing.T, table policytest.ReachCase) int {
	t.Helper()
	cells, err := table.Cells(slices.Collect(maps.Keys(c.named)))
	if err != nil {
		t.Fatal(err)
	}
	for _, cell := range cells {
		f := kubernetes.Flow{Protocol: cell.Protocol, Port: cell.Port}
		f.Source, f.From = c.end(cell.From)
		f.Destination, f.To = c.end(cell.To)
		heard := []bocage.DomainName(nil)
		if cell.Name != "" {
			heard, f.Patterns = []bocage.DomainName{cell.Name}, patternsOf(c.objects.ClusterNetworkPolicies, cell.Name)
		}
		result := c.evaluator.Evaluate(f)
		if f.From != nil && f.From == f.To {
			if !result.Allows {
				t.Errorf("%v: a Pod does not reach itself", cell)
			}
			continue
		}
		if f.From == nil && f.To == nil {
			continue // nobody's business
		}
		if result.Allows != cell.Reaches {
			t.Errorf("%v: evaluated %t, egress %v, ingress %v", cell, result.Allows, result.Egress, result.Ingress)
		}
		_, reason := c.ruleset.DecideNamed(bocage.Flow{Source: f.Source, Destination: f.Destination, Protocol: f.Protocol, DestinationPort: f.Port}, heard...)
		if reason.Would.Allowed() != cell.Reaches {
			t.Errorf("%v: compiled %s (%s)", cell, reason.Would, reason.Code)
		}
	}
	return len(cells)
}

// patternsOf lists the patterns of policies that a name matches.
func patternsOf(policies []*bocage.ClusterNetworkPolicy, name bocage.DomainName) []bocage.DomainName {
	var out []bocage.DomainName
	for _, p := range policies {
		for _, rule := range p.Spec.Egress {
			for _, peer := range rule.To {
				for _, text := range peer.DomainNames {
					if pattern, err := bocage.ParseDomainName(text); err == nil && pattern.Matches(name) {
						out = append(out, pattern)
					}
				}
			}
		}
	}
	return out
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
