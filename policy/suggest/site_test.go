package suggest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/simulate"
)

// recorded is what a site of the given size would show: every contract that it
// declares is used by some of its pairs, and somebody scans.
func recorded(in compile.Input, r *rand.Rand) []bocage.Edge {
	byApp := map[string][]*bocage.Workload{}
	for _, w := range in.Workloads {
		key := w.Namespace + "/" + w.Labels["app"]
		byApp[key] = append(byApp[key], w)
	}
	provides := map[string][]bocage.Provide{}
	for _, a := range in.Applications {
		provides[a.NamespacedName()] = a.Spec.Provides
	}
	var edges []bocage.Edge
	add := func(from, to string, protocol bocage.Protocol, port uint16) {
		edges = append(edges, bocage.Edge{Source: from, Destination: to, Protocol: protocol, DestinationPort: port, Flows: int64(20 + r.IntN(100)), Replied: 20,
			First: policytest.Now.Add(-time.Hour), Last: policytest.Now})
	}
	for _, a := range in.Applications {
		for _, c := range a.Spec.Consumes {
			for _, from := range byApp[a.NamespacedName()] {
				if c.External.IsValid() {
					add(from.NamespacedName(), c.External.Prefix.Addr().String(), bocage.ProtocolTCP, c.Port)
					continue
				}
				service := c.Service
				if !strings.Contains(service, "/") {
					service = a.Namespace + "/" + service
				}
				for _, p := range provides[service] {
					if p.Name != c.Interface {
						continue
					}
					protocol, _, _ := bocage.Transport(p.Port, 0, p.Protocol)
					for _, to := range byApp[service] {
						if r.IntN(3) > 0 {
							add(from.NamespacedName(), to.NamespacedName(), protocol, p.Port)
						}
					}
				}
			}
		}
	}
	scanner := in.Workloads[len(in.Workloads)-1]
	for port := range 60 {
		edges = append(edges, bocage.Edge{Source: scanner.NamespacedName(), Destination: in.Workloads[0].NamespacedName(), Protocol: bocage.ProtocolTCP,
			DestinationPort: uint16(1 + port), Flows: 1, Replied: int64(port % 2)})
	}
	return edges
}

// TestSites draws policy for sites of which nothing is declared, half, and all.
func TestSites(t *testing.T) {
	for _, size := range []int{10, 1000, 10_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(size), 7))
			site := policytest.Site(size)
			for _, w := range site.Workloads {
				w.Labels["pod-template-hash"] = fmt.Sprintf("%08x", r.Uint32())
			}
			// Its test namespaces are kept from card data: nobody gets round that.
			site.Guardrails = nil
			edges := recorded(site, r)

			nothing := compile.Input{Workloads: site.Workloads, Now: site.Now}
			result := check(t, edges, nothing)
			if applications := max(size/5, 1); len(result.Applications) > applications+2 {
				t.Errorf("%d applications suggested, the site has %d", len(result.Applications), applications)
			}
			contracts := 0
			for _, a := range result.Applications {
				contracts += len(a.Spec.Provides)
				if strings.Contains(fmt.Sprint(a.Spec), "pod-template-hash") {
					t.Errorf("%s selects by a hash", a.NamespacedName())
				}
			}
			if len(result.Review) < 60 {
				t.Errorf("%d edges for review", len(result.Review))
			}
			t.Logf("%d edges: %d applications with %d provides, %d covered, %d pairs unseen, %d for review",
				len(edges), len(result.Applications), contracts, result.Covered, result.Unseen, len(result.Review))
			if size > 5000 {
				return
			}

			half := site
			half.Applications = nil
			for i, a := range site.Applications {
				if i%2 == 0 {
					half.Applications = append(half.Applications, a)
				}
			}
			check(t, edges, half)
			if whole := check(t, edges, site); len(whole.Applications) > 0 || whole.Declared == 0 {
				t.Errorf("all is declared, yet %d applications are suggested: %+v", len(whole.Applications), whole.Applications[0])
			}

			// The same edges give the same suggestion in any order.
			slices.Reverse(edges)
			if again := Extend(edges, nothing, nil); !reflect.DeepEqual(again, result) {
				t.Errorf("another order gives another suggestion")
			}
		})
	}
}

// check draws a suggestion and replays every edge on it: each is allowed, or set
// apart with a reason.
func check(t *testing.T, edges []bocage.Edge, in compile.Input) bocage.SuggestResult {
	t.Helper()
	result := Extend(edges, in, nil)
	if len(result.Why) != len(result.Review) {
		t.Fatalf("%d reasons for %d edges", len(result.Why), len(result.Review))
	}
	var changes []explain.Change
	for _, a := range result.Applications {
		if faults := a.Validate(); len(faults) > 0 {
			t.Fatalf("%s: %v", a.NamespacedName(), faults)
		}
		changes = append(changes, explain.Change{Object: a})
	}
	simulator, _ := simulate.Compile(explain.Apply(in, changes))
	type key struct {
		from, to string
		protocol bocage.Protocol
		port     uint16
	}
	apart := map[key]bool{}
	for i, e := range result.Review {
		apart[key{e.Source, e.Destination, e.Protocol, e.DestinationPort}] = true
		if result.Why[i] == "" {
			t.Errorf("no reason for %v", e)
		}
	}
	allowed := 0
	for _, e := range edges {
		if apart[key{e.Source, e.Destination, e.Protocol, e.DestinationPort}] {
			continue
		}
		from, _ := simulator.Resolve(e.Source)
		to, _ := simulator.Resolve(e.Destination)
		source, destination, _ := simulate.Ends(from, to)
		if _, reason := simulator.Decide(source, destination, e.Protocol, e.DestinationPort, in.Now); !reason.Would.Allowed() {
			t.Fatalf("%s to %s %s/%d is neither allowed nor for review", e.Source, e.Destination, e.Protocol, e.DestinationPort)
		}
		allowed++
	}
	if allowed != result.Covered+result.Declared {
		t.Errorf("%d edges are allowed, said are %d and %d", allowed, result.Covered, result.Declared)
	}
	return result
}

// TestTellingLabels chooses the labels that tell kinds of workload apart.
func TestTellingLabels(t *testing.T) {
	var workloads []*bocage.Workload
	for i := range 12 {
		component := []string{"front", "back", "queue"}[i%3]
		workloads = append(workloads, workload(i, "shop", fmt.Sprintf("shop-%s-%d", component, i),
			map[string]string{"app": "shop", "component": component, "pod-template-hash": fmt.Sprintf("%010d", i), "env": "prod"}))
	}
	var edges []bocage.Edge
	for i := 0; i < 12; i += 3 {
		for k := 0; k < 12; k += 3 {
			edges = append(edges, edge(workloads[i].NamespacedName(), workloads[k+1].NamespacedName(), 8080, 50, 50),
				edge(workloads[k+1].NamespacedName(), workloads[i+2].NamespacedName(), 5672, 50, 50))
		}
	}
	result := check(t, edges, compile.Input{Workloads: workloads})
	var names []string
	for _, a := range result.Applications {
		names = append(names, a.Name+" "+fmt.Sprint(a.Spec.Workload.MatchLabels))
	}
	if want := []string{"shop-back map[app:shop component:back]", "shop-front map[app:shop component:front]", "shop-queue map[app:shop component:queue]"}; !slices.Equal(names, want) || result.Unseen != 0 {
		t.Errorf("%q, %d unseen", names, result.Unseen)
	}
}

// TestExtends adds to what is declared, beside what it says.
func TestExtends(t *testing.T) {
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	to := func(name string) bocage.Selector { return bocage.Selector{MatchLabels: app(name)} }
	in := compile.Input{Workloads: []*bocage.Workload{workload(1, "shop", "web", app("web")), workload(2, "shop", "api", app("api")), workload(3, "ops", "probe", app("probe"))},
		Applications: []*bocage.Application{{
			ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "backend", Labels: map[string]string{"team": "one"}, Annotations: map[string]string{bocage.SourceAnnotation: "api.yaml:1"}},
			Spec:       bocage.ApplicationSpec{Workload: to("api"), Provides: []bocage.Provide{{Name: "http", Port: 8080, Data: []string{"pii"}, To: to("web")}}}}}}
	edges := []bocage.Edge{edge("shop/web", "shop/api", 8080, 50, 50), edge("ops/probe", "shop/api", 8080, 50, 50), edge("shop/api", "203.0.113.7", 443, 50, 50)}
	result := check(t, edges, in)
	if len(result.Applications) != 3 {
		t.Fatalf("%d applications", len(result.Applications))
	}
	backend := result.Applications[slices.IndexFunc(result.Applications, func(a *bocage.Application) bool { return a.Name == "backend" })]
	if len(backend.Spec.Provides) != 2 || backend.Spec.Provides[0].Name != "http" || backend.Labels["team"] != "one" || len(backend.Spec.Consumes) != 1 {
		t.Fatalf("%+v", backend)
	}
	if added := backend.Spec.Provides[1]; added.Name != "http-8080" || !slices.Equal(added.Data, []string{"pii"}) || !slices.Equal(added.ToNamespaces, []string{"ops"}) {
		t.Errorf("added %+v", added)
	}
	if len(in.Applications[0].Spec.Provides) != 1 || len(in.Applications[0].Spec.Consumes) != 0 {
		t.Errorf("the declared object was changed: %+v", in.Applications[0].Spec)
	}
}

// TestWhy says why an edge is left to people.
func TestWhy(t *testing.T) {
	in := compile.Input{Now: policytest.Now, Workloads: []*bocage.Workload{workload(1, "shop", "web", nil), workload(2, "shop", "db", nil)},
		Guardrails: []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "no-telnet"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 23}}}}}}}}
	edges := []bocage.Edge{edge("shop/web", "shop/db", 23, 50, 50), edge("shop/web", "shop/db", 24, 50, 0), edge("shop/gone", "shop/db", 80, 5, 5), edge("192.0.2.1", "192.0.2.2", 80, 5, 5)}
	for i := range 12 {
		edges = append(edges, edge("shop/web", "shop/db", uint16(1000+i*7), 40, 40))
	}
	edges = append(edges, edge("shop/db", "shop/web", 9, 1, 1))
	result := check(t, edges, in)
	why := map[string]string{}
	for i, e := range result.Review {
		why[fmt.Sprintf("%s %d", e.Source, e.DestinationPort)] = result.Why[i]
	}
	for edge, part := range map[string]string{"shop/web 23": "Guardrail no-telnet spec.never[0]", "shop/web 24": "nobody answered", "shop/gone 80": "neither a workload",
		"192.0.2.1 80": "neither end is a workload", "shop/db 9": "rare: seen 1 times"} {
		if !strings.Contains(why[edge], part) {
			t.Errorf("%s: %q lacks %q", edge, why[edge], part)
		}
	}
	if len(result.Review) != 5 {
		t.Errorf("for review: %v", result.Review)
	}
}

// TestRare tells what was tried once beside a site at work from what is used rarely but
// for long, and takes what there is where nothing was used often.
func TestRare(t *testing.T) {
	in := compile.Input{Now: policytest.Now, Workloads: []*bocage.Workload{workload(1, "shop", "web", nil), workload(2, "shop", "api", nil), workload(3, "shop", "db", nil), workload(4, "dev", "red", nil)}}
	pool := edge("shop/api", "shop/db", 5432, 1, 1)
	pool.Last = pool.First.Add(time.Hour)
	tried := []bocage.Edge{edge("dev/red", "shop/web", 80, 1, 1), edge("dev/red", "shop/db", 5432, 2, 2),
		{Source: "dev/red", Destination: "shop/api", Protocol: bocage.ProtocolICMP, Flows: 1, Replied: 1}}
	// A point tells late that a flow ended, and two tries may lie hours apart.
	tried[0].Last, tried[1].Last = tried[0].First.Add(2*time.Minute), tried[1].First.Add(3*time.Hour)
	for _, c := range []struct {
		name   string
		edges  []bocage.Edge
		review int
	}{
		{"beside a site at work", append([]bocage.Edge{edge("shop/web", "shop/api", 8080, 50, 50), pool}, tried...), 3},
		{"beside one that was hardly seen", append([]bocage.Edge{edge("shop/web", "shop/api", 8080, 3, 3), pool}, tried...), 0},
		{"by who uses something else", append([]bocage.Edge{edge("dev/red", "shop/api", 8080, 50, 50)}, tried...), 0},
		{"where others do often", append([]bocage.Edge{edge("dev/red", "shop/api", 8080, 50, 50), edge("shop/api", "shop/web", 80, 50, 50)}, tried...), 1},
	} {
		if result := check(t, c.edges, in); len(result.Review) != c.review {
			t.Errorf("%s: for review: %v %v", c.name, result.Review, result.Why)
		}
	}
}

func TestPrefixes(t *testing.T) {
	var world []netip.Addr
	for i := range 64 {
		world = append(world, netip.AddrFrom4([4]byte{byte(20 + 3*i), 1, byte(i), 9}))
	}
	parse := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	for _, c := range []struct {
		name      string
		addresses []netip.Addr
		want      []string
	}{
		{"one", parse("203.0.113.7"), []string{"203.0.113.7/32"}},
		{"few of one network", parse("203.0.113.7", "203.0.113.9"), []string{"203.0.113.7/32", "203.0.113.9/32"}},
		{"several of one network", parse("203.0.113.64", "203.0.113.65", "203.0.113.70", "203.0.113.71", "198.51.100.1"), []string{"198.51.100.1/32", "203.0.113.64/29"}},
		{"private ones stay apart", parse("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"), []string{"10.0.0.0/29"}},
		{"IPv6", parse("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db9::1"), []string{"2001:db8::/125", "2001:db9::1/128"}},
		{"all over the world", world, []string{"0.0.0.0/0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, p := range prefixes(c.addresses) {
				got = append(got, p.String())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestDrawn extends drawn declarations by drawn edges: what comes back is allowed
// with the suggestion, or set apart.
func TestDrawn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		in := policytest.Draw(rt)
		ends := make([]string, 0, 40)
		for _, w := range in.Workloads {
			ends = append(ends, w.NamespacedName())
		}
		for _, a := range policytest.Addresses() {
			ends = append(ends, a.String())
		}
		var edges []bocage.Edge
		for range rapid.IntRange(0, 30).Draw(rt, "edges") {
			from, to := rapid.SampledFrom(ends).Draw(rt, "from"), rapid.SampledFrom(ends).Draw(rt, "to")
			e := edge(from, to, rapid.SampledFrom(policytest.Ports()).Draw(rt, "port"), 30, int64(rapid.IntRange(0, 30).Draw(rt, "replied")))
			e.Protocol = rapid.SampledFrom([]bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMP, 47}).Draw(rt, "protocol")
			edges = append(edges, e)
		}
		result := Extend(edges, in, nil)
		if len(result.Why) != len(result.Review) {
			rt.Fatalf("%d reasons for %d edges", len(result.Why), len(result.Review))
		}
		var changes []explain.Change
		for _, a := range result.Applications {
			if faults := a.Validate(); len(faults) > 0 {
				rt.Fatalf("%s: %v", a.NamespacedName(), faults)
			}
			changes = append(changes, explain.Change{Object: a})
		}
		judge := explain.NewJudge(explain.Apply(in, changes))
		s := &suggestion{in: in}
		s.findEnds()
		apart := map[string]bool{}
		line := func(e bocage.Edge) (*line, string) {
			l := s.resolve([]bocage.Edge{e})[0]
			return l, fmt.Sprint(l.sourceName, " ", l.destinationName, " ", l.service())
		}
		for _, e := range result.Review {
			_, key := line(e)
			apart[key] = true
		}
		for _, e := range edges {
			l, key := line(e)
			if apart[key] || l.sourceName == "" || l.destinationName == "" {
				continue
			}
			if g := judge.Judge(s.flow(l)); !g.Would.Allowed() {
				rt.Fatalf("%s: %s (%s) and not for review\n%s", key, g.Would, g.Code, policytest.Describe(in))
			}
		}
		slices.Reverse(edges)
		if again := Extend(edges, in, nil); !reflect.DeepEqual(again.Applications, result.Applications) {
			rt.Fatalf("another order gives another suggestion")
		}
	})
}
