package suggest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func workload(i int, namespace, name string, labels map[string]string) *bocage.Workload {
	return &bocage.Workload{
		ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec:       bocage.WorkloadSpec{Host: "h", Interface: fmt.Sprintf("v%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}},
		Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
	}
}

func edge(source, destination string, port uint16, flows, replied int64) bocage.Edge {
	return bocage.Edge{Source: source, Destination: destination, Protocol: bocage.ProtocolTCP, DestinationPort: port, Flows: flows, Replied: replied}
}

// TestShop is the suggestion that a person sees first.
func TestShop(t *testing.T) {
	app := func(name string) map[string]string { return map[string]string{"app": name, "env": "prod"} }
	workloads := []*bocage.Workload{
		workload(1, "shop", "web-1", app("web")), workload(2, "shop", "web-2", app("web")),
		workload(3, "shop", "api-1", app("api")), workload(4, "shop", "db", app("db")), workload(5, "shop", "cache", app("cache")),
		workload(6, "shop", "client", nil), workload(7, "dev", "red", app("red")), workload(8, "ops", "prom", app("prometheus")),
	}
	edges := []bocage.Edge{
		edge("shop/client", "shop/web-1", 80, 100, 100), edge("shop/client", "shop/web-2", 80, 90, 90),
		edge("shop/web-1", "shop/api-1", 8080, 50, 50), edge("shop/web-2", "10.0.0.3", 8080, 40, 40),
		edge("shop/api-1", "shop/db", 5432, 1, 1), edge("shop/api-1", "shop/cache", 6379, 10, 9),
		edge("ops/prom", "shop/api-1", 9090, 10, 10), edge("shop/api-1", "203.0.113.7", 443, 4, 4),
		edge("198.51.100.1", "shop/web-1", 80, 5, 5),
		edge("dev/red", "shop/db", 5432, 3, 0), edge("shop/gone", "shop/db", 5432, 3, 3), edge("shop/web-1", "224.0.0.251", 5353, 3, 3),
	}
	got := Suggest(edges, workloads, []string{"shop"})
	to := func(key, value string) bocage.Selector {
		return bocage.Selector{MatchLabels: map[string]string{key: value}}
	}
	want := []*bocage.Application{
		declared("api", "app", bocage.ApplicationSpec{
			Provides: []bocage.Provide{
				{Name: "http", Port: 8080, To: to("app", "web")},
				{Name: "prometheus", Port: 9090, To: to("app", "prometheus"), ToNamespaces: []string{"ops"}},
			},
			Consumes: []bocage.Consume{{External: bocage.ExternalPrefix(netip.MustParsePrefix("203.0.113.7/32")), Port: 443}, {Service: "cache"}, {Service: "db"}}}),
		declared("cache", "app", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "redis", Port: 6379, To: to("app", "api")}}}),
		declared("client", bocage.LabelName, bocage.ApplicationSpec{Consumes: []bocage.Consume{{Service: "web"}}}),
		declared("db", "app", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "postgres", Port: 5432, To: to("app", "api")}}}),
		declared("web", "app", bocage.ApplicationSpec{
			Provides: []bocage.Provide{{Name: "http", Port: 80, To: to(bocage.LabelName, "client"), ToExternal: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}}},
			Consumes: []bocage.Consume{{Service: "api", Interface: "http"}}}),
	}
	if diff := cmp.Diff(want, got.Applications, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("suggested (-want +got):\n%s", diff)
	}
	if len(got.Review) != 3 {
		t.Errorf("for review: %v", got.Review)
	}
}

func declared(name, key string, spec bocage.ApplicationSpec) *bocage.Application {
	spec.Workload = bocage.Selector{MatchLabels: map[string]string{key: name}}
	return &bocage.Application{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Application"},
		ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name}, Spec: spec}
}

// TestScannersAreSetApart keeps what a scan found out of the suggestion, also
// where closed ports answer.
func TestScannersAreSetApart(t *testing.T) {
	workloads := []*bocage.Workload{workload(1, "shop", "red", nil), workload(2, "shop", "web", nil), workload(3, "shop", "user", nil)}
	edges := []bocage.Edge{edge("shop/user", "shop/web", 80, 50, 50)}
	for port := range 100 {
		edges = append(edges, edge("shop/red", "shop/web", uint16(port+1), 1, int64(port%2)))
	}
	for i := range 5 {
		edges = append(edges, edge("shop/web", "shop/user", uint16(40000+i), 1, 1))
	}
	got := Suggest(edges, workloads, nil)
	if len(got.Review) != 105 || len(got.Applications) != 2 {
		t.Errorf("%d for review, %d applications", len(got.Review), len(got.Applications))
	}
}

// TestRoundTrip compiles suggestions: exactly what was seen, at the level of
// applications, is allowed.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var workloads []*bocage.Workload
		for i := range rapid.IntRange(1, 10).Draw(t, "workloads") {
			labels := map[string]string{}
			for _, key := range nameLabelKeys() {
				if rapid.IntRange(0, 2).Draw(t, "has") == 0 {
					labels[key] = rapid.SampledFrom([]string{"a", "B_c", "w1"}).Draw(t, "value")
				}
			}
			workloads = append(workloads, workload(i, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "ns"), fmt.Sprintf("w%d", i), labels))
		}
		outside := []string{"203.0.113.1", "203.0.113.2", "2001:db8::1"}
		name := func() string {
			if rapid.IntRange(0, 4).Draw(t, "outside") == 0 {
				return rapid.SampledFrom(outside).Draw(t, "address")
			}
			return rapid.SampledFrom(workloads).Draw(t, "workload").NamespacedName()
		}
		var edges []bocage.Edge
		for range rapid.IntRange(0, 12).Draw(t, "edges") {
			e := edge(name(), name(), rapid.SampledFrom([]uint16{22, 80, 81, 82, 5432, 8080}).Draw(t, "port"), 9, int64(rapid.IntRange(0, 3).Draw(t, "replied")))
			e.Protocol = rapid.SampledFrom([]bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMP}).Draw(t, "protocol")
			edges = append(edges, e)
		}
		result := Suggest(edges, workloads, nil)
		seed := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		seed.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
		shuffled := slices.Clone(workloads)
		seed.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := Suggest(edges, shuffled, nil); !reflect.DeepEqual(again.Applications, result.Applications) {
			t.Fatalf("another order gives another suggestion")
		}
		for _, a := range result.Applications {
			if faults := a.Validate(); len(faults) > 0 {
				t.Fatalf("%s: %v", a.NamespacedName(), faults)
			}
		}
		out := compile.Compile(compile.Input{Applications: result.Applications, Workloads: workloads})
		for _, f := range out.Findings() {
			t.Fatalf("the suggestion is incomplete: %v\n%s", f, policytest.Describe(compile.Input{Applications: result.Applications}))
		}

		// Who is whom, independently: the same best label in the same namespace.
		class := func(end string) string {
			for _, w := range workloads {
				if w.NamespacedName() == end {
					key, value := nameLabel(w)
					return w.Namespace + " " + key + " " + value
				}
			}
			return end
		}
		seen := map[string]bool{}
		for _, e := range edges {
			if e.Replied > 0 {
				seen[fmt.Sprint(class(e.Source), "|", class(e.Destination), "|", e.Protocol, portOf(e))] = true
			}
		}
		ends := slices.Clone(outside)
		for _, w := range workloads {
			ends = append(ends, w.NamespacedName())
		}
		address := func(end string) netip.Addr {
			for _, w := range workloads {
				if w.NamespacedName() == end {
					return w.Spec.Addresses[0]
				}
			}
			return netip.MustParseAddr(end)
		}
		isWorkload := func(end string) bool { return !slices.Contains(outside, end) }
		for _, source := range ends {
			for _, destination := range ends {
				if !isWorkload(source) && !isWorkload(destination) {
					continue
				}
				for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMP} {
					for _, port := range []uint16{21, 22, 80, 81, 82, 83, 5432, 8080} {
						e := bocage.Edge{Source: source, Destination: destination, Protocol: protocol, DestinationPort: port}
						want := seen[fmt.Sprint(class(source), "|", class(destination), "|", protocol, portOf(e))]
						_, reason := out.Ruleset().Decide(bocage.Flow{Source: address(source), Destination: address(destination), Protocol: protocol, DestinationPort: port})
						if reason.Would.Allowed() != want {
							t.Fatalf("%s -> %s %s/%d: allowed %v, seen %v", source, destination, protocol, port, !want, want)
						}
					}
				}
			}
		}
	})
}

func portOf(e bocage.Edge) uint16 {
	if !e.Protocol.HasPorts() {
		return 0
	}
	return e.DestinationPort
}

// A contract declares what all flows of its port were heard to speak.
func TestSpokenIsDeclared(t *testing.T) {
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	workloads := []*bocage.Workload{workload(1, "shop", "web-1", app("web")), workload(2, "shop", "web-2", app("web")),
		workload(3, "shop", "api", app("api")), workload(4, "shop", "db", app("db"))}
	speaks := func(e bocage.Edge, p bocage.AppProtocol) bocage.Edge { e.Spoken = p; return e }
	edges := []bocage.Edge{
		speaks(edge("shop/web-1", "shop/api", 8080, 50, 50), bocage.SpeechHTTP), speaks(edge("shop/web-2", "shop/api", 8080, 50, 50), bocage.SpeechHTTP),
		speaks(edge("shop/web-1", "shop/api", 8081, 50, 50), bocage.SpeechTLS), // a neighbour that speaks something else
		speaks(edge("shop/web-1", "shop/api", 8443, 50, 50), bocage.SpeechTLS), speaks(edge("shop/web-2", "shop/api", 8443, 50, 50), bocage.SpeechHTTP),
		speaks(edge("shop/web-1", "shop/api", 9000, 50, 50), bocage.SpeechHTTP), edge("shop/web-2", "shop/api", 9000, 50, 50), // only checks the port
		speaks(edge("shop/api", "shop/db", 5432, 50, 50), bocage.SpeechPostgreSQL), speaks(edge("shop/api", "10.0.0.4", 5432, 1, 1), bocage.SpeechPostgreSQL),
		speaks(edge("shop/api", "shop/db", 9999, 50, 50), bocage.SpeechOther),
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		random.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
		got := map[uint16]string{}
		for _, a := range Suggest(edges, workloads, nil).Applications {
			for _, p := range a.Spec.Provides {
				got[p.Port] = p.AppProtocol
				if p.EndPort != 0 {
					t.Errorf("ports %d to %d are one offer", p.Port, p.EndPort)
				}
			}
		}
		want := map[uint16]string{8080: "http", 8081: "tls", 8443: "", 9000: "http", 5432: "postgresql", 9999: ""}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("declared %v, want %v", got, want)
		}
	}
}
