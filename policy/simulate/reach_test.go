package simulate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestMatrixAgreesWithAnswers: what the matrix lists is allowed, and nothing else.
func TestMatrixAgreesWithAnswers(t *testing.T) {
	cells := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		s, _ := Compile(in)
		matrix, err := s.Matrix(nil)
		if err != nil {
			t.Fatal(err)
		}
		listed := map[string][]bocage.ReachSet{}
		for _, cell := range matrix.Cells {
			listed[cell.From+" "+cell.To] = cell.Ports
		}
		for _, from := range matrix.Workloads {
			for _, to := range matrix.Workloads {
				sets := listed[from+" "+to]
				for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMP, 47} {
					for _, port := range policytest.Ports() {
						if protocol.HasPorts() == (port == 0) {
							continue
						}
						cells++
						a := s.Verdict(bocage.SimulateProbe{From: from, To: to, Port: port, Protocol: protocol.String()})
						if a.Error != "" {
							continue
						}
						first, _ := s.question(a.SimulateProbe)
						for _, of := range []string{bocage.FamilyIPv4, bocage.FamilyIPv6} {
							i := slices.IndexFunc(sets, func(r bocage.ReachSet) bool {
								return (r.Protocol == protocol || r.Protocol == bocage.ProtocolAny) && (!protocol.HasPorts() || r.Ports.Contains(port)) && (r.Family == "" || r.Family == of)
							})
							// Protocols that nobody names are listed only where all are alike.
							if protocol == 47 && i < 0 && len(sets) > 0 {
								continue
							}
							allowed := a.Verdict == "allow"
							switch {
							case a.Families[of] != "":
								allowed = strings.HasPrefix(a.Families[of], "allow")
							case family(first.from) != of && !first.other.from.Address.IsValid():
								continue // they have no addresses of it
							}
							same := i < 0 || from == to || family(first.from) != of || slices.Equal(sets[i].Duties, a.Duties)
							if (i >= 0) != allowed || !same {
								t.Fatalf("%s -> %s %s/%d over %s: answered %+v, listed %+v\n%s", from, to, protocol, port, of, a, sets, policytest.Describe(in))
							}
						}
					}
				}
			}
		}
	})
	if cells < 20_000 {
		t.Errorf("only %d cells", cells)
	}
}

func TestMatrix(t *testing.T) {
	s, _ := Compile(small())
	m, err := s.Matrix([]string{"shop"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, cell := range m.Cells {
		for _, set := range cell.Ports {
			got = append(got, fmt.Sprintf("%s -> %s %s/%s %v", cell.From, cell.To, set.Protocol, set.Ports, set.Duties))
		}
	}
	want := []string{"shop/api -> shop/db TCP/5432 [log=full witness]", "shop/web -> shop/api TCP/8080 []"}
	if !slices.Equal(got, want) || !slices.Equal(m.Workloads, []string{"shop/api", "shop/db", "shop/web"}) {
		t.Errorf("%v of %v", got, m.Workloads)
	}
	if m, _ := s.Matrix([]string{"nowhere"}); m.Workloads == nil || m.Cells == nil {
		t.Errorf("an empty matrix is null: %+v", m)
	}
}

// TestBlastAgreesWithWalkingByHand compares with the plainest search there is,
// over workloads and every port at which something may change.
func TestBlastAgreesWithWalkingByHand(t *testing.T) {
	reached := 0
	for reached < 500 {
		rapid.Check(t, func(t *rapid.T) {
			s, _ := Compile(policytest.Draw(t))
			reached += blastAgrees(t, s, policytest.Ports())
		})
	}
}

// TestBlastAgreesOnRandomRulesets does the same where wildcards cross and
// workloads have addresses in several groups.
func TestBlastAgreesOnRandomRulesets(t *testing.T) {
	reached := 0
	for reached < 2000 {
		rapid.Check(t, func(t *rapid.T) {
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 11))
			rs := randomRuleset(r)
			in := compile.Input{Now: policytest.Now}
			for i := range 8 {
				w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: []string{"a", "b"}[i%2], Name: fmt.Sprintf("w%d", i)},
					Status: bocage.WorkloadStatus{Identity: bocage.Identity(100 + i)}}
				for k := range 1 + r.IntN(3) {
					address := netip.AddrFrom4([4]byte{192, 0, byte(i), byte(k)})
					if r.IntN(3) == 0 {
						address = netip.AddrFrom16([16]byte{0xfc, 14: byte(i), 15: byte(k)})
					}
					w.Spec.Addresses = append(w.Spec.Addresses, address)
					rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(address, address.BitLen()), Identity: w.Status.Identity,
						Group: bocage.GroupFirst + bocage.Group(r.IntN(6)), Workload: w.NamespacedName()})
				}
				in.Workloads = append(in.Workloads, w)
			}
			rs.Refused = append(rs.Refused, bocage.Refusal{Identity: bocage.Identity(100 + r.IntN(16)), Decision: 2})
			var ports []uint16
			for _, rule := range rs.Rules {
				ports = append(ports, rule.Ports.First-1, rule.Ports.First, rule.Ports.Last, rule.Ports.Last+1)
			}
			slices.Sort(ports)
			reached += blastAgrees(t, New(in, rs), slices.Compact(append(ports, 0)))
		})
	}
}

func blastAgrees(t *rapid.T, s *Simulator, ports []uint16) (reached int) {
	if len(s.workloads) == 0 {
		return 0
	}
	q := bocage.BlastQuery{Hops: rapid.IntRange(0, 3).Draw(t, "hops"), Uninspected: rapid.Bool().Draw(t, "uninspected")}
	switch rapid.IntRange(0, 2).Draw(t, "from") {
	case 0:
		q.From = rapid.SampledFrom(s.Workloads()).Draw(t, "workload")
	case 1:
		q.From = rapid.SampledFrom(policytest.Addresses()).Draw(t, "address").String()
	default:
		namespace, _, _ := strings.Cut(rapid.SampledFrom(s.Workloads()).Draw(t, "namespace"), "/")
		q.From = namespace + "/"
	}
	result, err := s.Blast(q)
	if err != nil {
		t.Fatal(err)
	}
	want := byHand(s, q, result.From, ports)
	got := map[string]int{}
	for _, target := range result.Reached {
		got[target.Workload] = target.Hops
		if len(target.Path) != target.Hops+1 || !slices.Contains(result.From, target.Path[0]) || target.Path[target.Hops] != target.Workload {
			t.Fatalf("a way of %d hops: %v", target.Hops, target.Path)
		}
		for i := range target.Hops {
			if !passes(s, target.Path[i], target.Path[i+1], q.Uninspected, ports) {
				t.Fatalf("the way %v is closed after %s\n%s", target.Path, target.Path[i], policytest.Describe(s.in))
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%+v reached %v, by hand %v\n%s", q, got, want, policytest.Describe(s.in))
	}
	return len(got)
}

func byHand(s *Simulator, q bocage.BlastQuery, from []string, ports []uint16) map[string]int {
	hops := map[string]int{}
	frontier := from
	for hop := 1; len(frontier) > 0 && (q.Hops == 0 || hop <= q.Hops); hop++ {
		var next []string
		for _, a := range frontier {
			for _, b := range s.Workloads() {
				if _, known := hops[b]; !known && !slices.Contains(from, b) && passes(s, a, b, q.Uninspected, ports) {
					hops[b] = hop
					next = append(next, b)
				}
			}
		}
		frontier = next
	}
	return hops
}

// passes tries every port between all addresses.
func passes(s *Simulator, from, to string, uninspected bool, ports []uint16) bool {
	sources, _ := s.Resolve(from)
	destinations, _ := s.Resolve(to)
	for _, source := range sources {
		for _, destination := range destinations {
			if source.Address.Is4() == destination.Address.Is4() && passesBetween(s, source, destination, uninspected, ports) {
				return true
			}
		}
	}
	return false
}

func passesBetween(s *Simulator, from, to End, uninspected bool, ports []uint16) bool {
	for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMP, bocage.ProtocolSCTP, bocage.ProtocolICMPv6, 47, 200} {
		for _, port := range ports {
			_, reason := s.Decide(from, to, protocol, port, s.in.Now)
			if reason.Would.Allowed() && !(uninspected && reason.Would == bocage.VerdictInspect) {
				return true
			}
		}
	}
	return false
}

func TestBlast(t *testing.T) {
	in := small()
	in.Workloads[2].Labels[bocage.LabelWeight] = "40"
	in.Now = policytest.Now.Add(90 * time.Minute) // while the exception holds
	s, _ := Compile(in)
	for _, test := range []struct {
		query  bocage.BlastQuery
		weight int
		ways   []string
	}{
		{bocage.BlastQuery{From: "shop/web"}, 41, []string{"shop/web shop/api", "shop/web shop/api shop/db"}},
		{bocage.BlastQuery{From: "shop/web", Hops: 1}, 1, []string{"shop/web shop/api"}},
		{bocage.BlastQuery{From: "10.0.0.1", Hops: 1}, 1, []string{"shop/web shop/api"}},
		{bocage.BlastQuery{From: "shop/"}, 0, nil},
		{bocage.BlastQuery{From: "dev/tool", Hops: 1}, 42, []string{"dev/tool shop/api", "dev/tool shop/db", "dev/tool shop/web"}},
		{bocage.BlastQuery{From: "198.51.100.1"}, 0, nil},
	} {
		result, err := s.Blast(test.query)
		if err != nil {
			t.Fatal(err)
		}
		var ways []string
		for _, r := range result.Reached {
			ways = append(ways, strings.Join(r.Path, " "))
		}
		if result.Weight != test.weight || !slices.Equal(ways, test.ways) || result.Total != 5 {
			t.Errorf("%+v: weight %d of %d, %v", test.query, result.Weight, result.Total, ways)
		}
	}
	for from, want := range map[string]string{"nobody/": "has no workload", "a/b": "neither an address nor a workload", "": "is empty"} {
		if _, err := s.Blast(bocage.BlastQuery{From: from}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("from %q: %v", from, err)
		}
	}
	if _, err := s.Blast(bocage.BlastQuery{From: "shop/web", Hops: -1}); err == nil {
		t.Error("-1 hops")
	}
}

func TestTests(t *testing.T) {
	in := small()
	in.AddressGroups = []*bocage.AddressGroup{{ObjectMeta: bocage.ObjectMeta{Name: "partners"}, Spec: bocage.AddressGroupSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/25")}}}}
	s, _ := Compile(in)
	allow, refuse := bocage.PolicyExpectation{Reach: bocage.ReachAllow}, bocage.PolicyExpectation{Reach: bocage.ReachRefuse}
	with := func(x bocage.PolicyExpectation, change func(*bocage.PolicyExpectation)) bocage.PolicyExpectation {
		change(&x)
		return x
	}
	side := func(namespaces ...string) *bocage.Side { return &bocage.Side{Namespaces: namespaces} }
	for i, test := range []struct {
		c      bocage.PolicyTestCase
		passes bool
		got    string
		flow   string
	}{
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 8080, Expect: allow}, true, "allow (rule), decided by Application shop/api", "shop/web -> shop/api TCP/8080"},
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 8080, Expect: refuse}, false, "allow (rule)", "shop/web -> shop/api TCP/8080"},
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 22, Expect: allow}, false, "refuse by drop (default-deny), decided by Default deny", ""},
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 22, Expect: with(refuse, func(x *bocage.PolicyExpectation) { x.By = "Default deny"; x.Disposition = "drop" })}, true, "", ""},
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 22, Expect: with(refuse, func(x *bocage.PolicyExpectation) { x.Disposition = "reject" })}, false, "refuse by drop", ""},
		{bocage.PolicyTestCase{From: "shop/api", To: "shop/db", Port: 5432, Expect: with(allow, func(x *bocage.PolicyExpectation) {
			x.Duties = []string{"log", "witness"}
			x.By = "Application shop/api"
		})}, true, "allow with log=full, witness", ""},
		{bocage.PolicyTestCase{From: "shop/api", To: "shop/db", Port: 5432, Expect: with(allow, func(x *bocage.PolicyExpectation) { x.Duties = []string{"log=basic"} })}, false, "allow with log=full, witness", ""},
		{bocage.PolicyTestCase{From: "shop/web", To: "shop/api", Port: 8080, Expect: with(allow, func(x *bocage.PolicyExpectation) { x.Duties = []string{"inspect"} })}, false, "allow without a duty", ""},
		{bocage.PolicyTestCase{From: "shop/api", To: "shop/db", Port: 5432, Expect: with(allow, func(x *bocage.PolicyExpectation) { x.By = "Guardrail pci" })}, false, "decided by Application shop/db", ""},
		{bocage.PolicyTestCase{FromAll: side("dev"), ToAll: &bocage.Side{Data: []string{"pci"}}, Port: 5432, Expect: with(refuse, func(x *bocage.PolicyExpectation) { x.By = "Guardrail pci" })}, true, "refuse", ""},
		{bocage.PolicyTestCase{FromAll: side("dev"), ToAll: &bocage.Side{Data: []string{"pci"}}, Port: 5432, At: policytest.Now.Add(90 * time.Minute), Expect: refuse}, false, "allow", "dev/tool -> shop/db TCP/5432"},
		{bocage.PolicyTestCase{FromAll: side("shop"), ToAll: &bocage.Side{AddressGroups: []string{"partners"}}, Port: 443, Expect: refuse}, false, "allow", "shop/api -> 203.0.113.0 TCP/443"},
		{bocage.PolicyTestCase{FromAll: &bocage.Side{}, To: "shop/db", Port: 22, Expect: refuse}, false, "allow", "dev/tool -> shop/db TCP/22"},
		{bocage.PolicyTestCase{FromAll: &bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, ToAll: side("shop"), Port: 22, Expect: refuse}, true, "refuse", ""},
		{bocage.PolicyTestCase{FromAll: side("nowhere"), To: "shop/db", Port: 22, Expect: refuse}, false, "fromAll: picks nobody", ""},
		{bocage.PolicyTestCase{From: "shop/web", ToAll: &bocage.Side{AddressGroups: []string{"none"}}, Port: 22, Expect: refuse}, false, "toAll: there is no AddressGroup none", ""},
		{bocage.PolicyTestCase{From: "shop/gone", To: "shop/db", Port: 22, Expect: refuse}, false, "from: \"shop/gone\" is neither", ""},
		{bocage.PolicyTestCase{From: "shop/web", To: "2001:db8::1", Port: 22, Expect: refuse}, false, "no flow", ""},
	} {
		results := s.Test([]*bocage.PolicyTest{{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "t"}, Spec: bocage.PolicyTestSpec{Cases: []bocage.PolicyTestCase{test.c}}}})
		r := results[0]
		if r.Passed != test.passes || !strings.Contains(r.Got, test.got) || test.flow != "" && r.Flow != test.flow || r.Test != "shop/t" || r.Case != "cases[0]" {
			t.Errorf("case %d: %+v", i, r)
		}
	}
}

// TestTestsMeanEverybody: a case about all holds only if it does for every pair,
// those outside included, one of whom may be a hole in a larger prefix.
func TestTestsMeanEverybody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		s, _ := Compile(in)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		port := policytest.Ports()[r.IntN(len(policytest.Ports()))]
		if port == 0 {
			return
		}
		result := s.testCase(bocage.PolicyTestCase{FromAll: &bocage.Side{}, ToAll: &bocage.Side{}, Port: port, Expect: bocage.PolicyExpectation{Reach: bocage.ReachRefuse}})
		allowed := ""
		for _, from := range policytest.Addresses() {
			for _, to := range policytest.Addresses() {
				f := bocage.Flow{Source: from, Destination: to, DestinationPort: port, Protocol: bocage.ProtocolTCP, At: in.Now}
				if _, reason := s.rs.Decide(f); reason.Would.Allowed() && from.Is4() == to.Is4() {
					allowed = f.String()
				}
			}
		}
		if result.Passed && allowed != "" {
			t.Fatalf("passed although %s is allowed\n%s", allowed, policytest.Describe(in))
		}
	})
}

// BenchmarkBlast walks from the first workload of a site of 100,000.
func BenchmarkBlast(b *testing.B) {
	s, _ := Compile(policytest.Site(100_000))
	reached := 0
	for b.Loop() {
		result, err := s.Blast(bocage.BlastQuery{From: s.workloads[5].name})
		if err != nil {
			b.Fatal(err)
		}
		reached = len(result.Reached)
	}
	b.ReportMetric(float64(reached), "reached")
}
