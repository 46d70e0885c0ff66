package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// nobodyThere is a site of guardrails and applications without a workload.
func nobodyThere(guardrails []*bocage.Guardrail, apps ...*bocage.Application) compile.Input {
	return compile.Input{Now: policytest.Now, Guardrails: guardrails, Applications: apps,
		Zones: []*bocage.Zone{{ObjectMeta: bocage.ObjectMeta{Name: "east"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1", "h2"}}}}}
}

// TestContradictionsWhoeverJoins finds out with nobody there what can never be, and what
// could.
func TestContradictionsWhoeverJoins(t *testing.T) {
	side := func(requirements ...bocage.Requirement) bocage.Side {
		return bocage.Side{Workload: &bocage.Selector{MatchExpressions: requirements}}
	}
	team := func(values ...string) bocage.Side { return side(requirement("team", "In", values...)) }
	outside := func(prefixes ...string) bocage.Side {
		var s bocage.Side
		for _, p := range prefixes {
			s.External = append(s.External, netip.MustParsePrefix(p))
		}
		return s
	}
	port := func(first, last uint16) []bocage.PortMatch { return []bocage.PortMatch{{Port: first, EndPort: last}} }
	never := func(list ...bocage.CellMatch) bocage.GuardrailSpec { return bocage.GuardrailSpec{Never: list} }
	apart := func(by string) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Separate: &bocage.Separate{By: by}}
	}
	for _, test := range []struct {
		name  string
		grant bocage.CellMatch
		specs []bocage.GuardrailSpec
		by    string // who is told to refuse it; empty: something may be left
	}{
		{"two teams that are kept apart", bocage.CellMatch{From: team("a"), To: team("b")}, []bocage.GuardrailSpec{apart("team")}, "Guardrail g0 spec.separate"},
		{"teams of which one is the same", bocage.CellMatch{From: team("a", "b"), To: team("b", "c")}, []bocage.GuardrailSpec{apart("team")}, ""},
		{"a team and those without", bocage.CellMatch{From: team("a"), To: side(requirement("team", "DoesNotExist"))}, []bocage.GuardrailSpec{apart("team")}, "Guardrail g0 spec.separate"},
		{"those without", bocage.CellMatch{From: side(requirement("team", "DoesNotExist")), To: side(requirement("team", "NotIn", "a"))}, []bocage.GuardrailSpec{apart("team")}, ""},
		{"a team and all others", bocage.CellMatch{From: team("a"), To: side(requirement("team", "NotIn", "a"))}, []bocage.GuardrailSpec{apart("team")}, "Guardrail g0 spec.separate"},
		{"namespaces that are kept apart", bocage.CellMatch{From: bocage.Side{Namespaces: []string{"m"}}, To: bocage.Side{Namespaces: []string{"n"}}}, []bocage.GuardrailSpec{apart("namespace")}, "Guardrail g0 spec.separate"},
		{"namespaces, by their label", bocage.CellMatch{From: bocage.Side{Namespaces: []string{"m"}}, To: side(requirement(bocage.LabelNamespace, "NotIn", "m"))}, []bocage.GuardrailSpec{apart("namespace")}, "Guardrail g0 spec.separate"},
		{"outside is not kept apart", bocage.CellMatch{From: outside("203.0.113.0/24"), To: team("b")}, []bocage.GuardrailSpec{apart("team")}, ""},
		{"zones", bocage.CellMatch{From: side(requirement(bocage.LabelZone, "In", "east")), To: side(requirement(bocage.LabelZone, "In", "west"))}, []bocage.GuardrailSpec{apart("zone")}, "Guardrail g0 spec.separate"},
		{"what is apart and what is never", bocage.CellMatch{From: team("a", "b"), To: team("b")},
			[]bocage.GuardrailSpec{apart("team"), never(bocage.CellMatch{From: team("b"), To: team("b")})}, "Guardrail g0 spec.separate and Guardrail g1 spec.never[0] together"},
		{"the same of teams that nobody names", bocage.CellMatch{},
			[]bocage.GuardrailSpec{apart("team"), never(bocage.CellMatch{From: team("b"), To: team("b")})}, ""},
		{"halves of ports", bocage.CellMatch{To: team("a"), Ports: port(80, 90)}, []bocage.GuardrailSpec{never(bocage.CellMatch{Ports: port(1, 85)}, bocage.CellMatch{Ports: port(86, 95)})}, "Guardrail g0 spec.never[0] and Guardrail g0 spec.never[1] together"},
		{"a port that is left", bocage.CellMatch{To: team("a"), Ports: port(80, 90)}, []bocage.GuardrailSpec{never(bocage.CellMatch{Ports: port(1, 84)}, bocage.CellMatch{Ports: port(86, 95)})}, ""},
		{"halves of the network", bocage.CellMatch{From: outside("203.0.113.0/24"), To: team("a")},
			[]bocage.GuardrailSpec{never(bocage.CellMatch{From: outside("203.0.113.0/25")}), never(bocage.CellMatch{From: outside("203.0.113.128/25")})}, "Guardrail g0 spec.never[0] and Guardrail g1 spec.never[0] together"},
		{"an address that is left", bocage.CellMatch{From: outside("203.0.113.0/24"), To: team("a")},
			[]bocage.GuardrailSpec{never(bocage.CellMatch{From: outside("203.0.113.0/25", "203.0.113.128/26", "203.0.113.192/27")})}, ""},
		{"IPv6", bocage.CellMatch{From: team("a"), To: outside("2001:db8:1::/48")}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: outside("2001:db8::/32")})}, "Guardrail g0 spec.never[0]"},
		{"in or not in", bocage.CellMatch{To: team("a", "b", "c")}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: team("a")}), never(bocage.CellMatch{To: side(requirement("team", "NotIn", "a"))})}, "Guardrail g0 spec.never[0] and Guardrail g1 spec.never[0] together"},
		{"an empty value", bocage.CellMatch{To: team("")}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: team("")})}, "Guardrail g0 spec.never[0]"},
		{"other values than the empty one", bocage.CellMatch{To: team("")}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: side(requirement("team", "NotIn", ""))})}, ""},
		{"there or not", bocage.CellMatch{To: bocage.Side{Namespaces: []string{"m"}}}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: side(requirement("team", "Exists"))}, bocage.CellMatch{To: side(requirement("team", "DoesNotExist"))})}, "Guardrail g0 spec.never[0] and Guardrail g0 spec.never[1] together"},
		{"from outside too", bocage.CellMatch{To: team("a")}, []bocage.GuardrailSpec{never(bocage.CellMatch{From: side(requirement("x", "Exists"))}, bocage.CellMatch{From: side(requirement("x", "DoesNotExist"))})}, ""},
		{"another label", bocage.CellMatch{To: side(requirement("app", "In", "db"))}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: team("a")})}, ""},
		{"within spec.match only", bocage.CellMatch{To: team("a")}, []bocage.GuardrailSpec{{Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"m"}}}, Never: []bocage.CellMatch{{To: team("a")}}}}, ""},
		{"a host of the zone", bocage.CellMatch{To: side(requirement(bocage.LabelZone, "In", "east"), requirement(bocage.LabelHost, "In", "h1", "h9"))},
			[]bocage.GuardrailSpec{never(bocage.CellMatch{To: side(requirement(bocage.LabelHost, "In", "h1"))})}, "Guardrail g0 spec.never[0]"},
		{"every assurance", bocage.CellMatch{To: team("a")}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: side(requirement(bocage.LabelAssurance, "In", "L0", "L1", "L2"))},
			bocage.CellMatch{To: side(requirement(bocage.LabelAssurance, "In", "L3", "L4", "L5"))})}, "Guardrail g0 spec.never[0] and Guardrail g0 spec.never[1] together"},
		{"data", bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: bocage.Side{Data: []string{"pci", "pii"}}})}, "Guardrail g0 spec.never[0]"},
		{"more data", bocage.CellMatch{To: bocage.Side{Data: []string{"pci", "pii"}}}, []bocage.GuardrailSpec{never(bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}})}, ""},
		{"among thousands of others", bocage.CellMatch{To: team("a")}, []bocage.GuardrailSpec{never(thousands(func(n string) bocage.CellMatch { return bocage.CellMatch{To: team(n)} })...), never(bocage.CellMatch{To: team("a")})}, "Guardrail g1 spec.never[0]"},
		{"unless it admits an exception", bocage.CellMatch{To: team("a")}, []bocage.GuardrailSpec{{Never: []bocage.CellMatch{{}}, Exceptions: bocage.ExceptionTerms{Allowed: true}}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			guardrails := []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "grant"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{test.grant}}}}
			for i, spec := range test.specs {
				guardrails = append(guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("g%d", i)}, Spec: spec})
			}
			in := nobodyThere(guardrails)
			in.Exceptions = []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "e"}, Spec: bocage.ExceptionSpec{Guardrail: "g0", Reason: "x", Match: bocage.CellMatch{Ports: []bocage.PortMatch{{Port: 1}}}, Until: in.Now.Add(3600e9)}}}
			out := compile.Compile(in)
			if len(out.Faults) > 0 {
				t.Fatal(out.Faults)
			}
			findings := out.Findings()
			found := told(findings, "Guardrail grant spec.grant[0]", compile.Contradiction)
			switch {
			case test.by == "" && len(found) == 0:
			case len(found) != 1 || test.by == "" || !found[0].Rejected || !strings.HasPrefix(found[0].Message, "Guardrail grant spec.grant[0] allows nothing: "+test.by+" refuse") ||
				!strings.Contains(found[0].Message, "whoever joins"):
				t.Errorf("findings: %v", found)
			}
			for _, author := range strings.Split(strings.TrimSuffix(test.by, " together"), " and ") {
				if heard := told(findings, author, compile.Contradiction); test.by != "" && len(heard) != 1 {
					t.Errorf("%s is told %v", author, heard)
				}
			}
		})
	}
}

// TestContractsWhoeverJoins tells owners of contracts that can never come to life,
// before anybody is there, and takes it back.
func TestContractsWhoeverJoins(t *testing.T) {
	app := func(name string, spec bocage.ApplicationSpec) *bocage.Application {
		spec.Workload = bocage.Selector{MatchLabels: map[string]string{"app": name}}
		return &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "n", Name: name}, Spec: spec}
	}
	web := app("web", bocage.ApplicationSpec{Consumes: []bocage.Consume{{Service: "db"}, {External: bocage.ExternalPrefix(netip.MustParsePrefix("198.51.100.7/32")), Port: 443}}})
	db := app("db", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "sql", Port: 5432, ToExternal: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")}}}})
	guardrail := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{
		{To: bocage.Side{Workload: ptr(named("db"))}, Ports: []bocage.PortMatch{{Port: 5432}}},
		{From: bocage.Side{Workload: ptr(named("web"))}, To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}}}}
	in := nobodyThere([]*bocage.Guardrail{guardrail}, web, db)
	compiler := compile.NewCompiler()
	all := []string{"Application n/db spec.provides[0]", "Application n/db spec.provides[0].toExternal[0]", "Application n/web spec.consumes[0]", "Application n/web spec.consumes[1]"}
	for step, change := range []struct {
		change func()
		told   []string
	}{
		{func() {}, all},
		{func() { in.Guardrails = nil }, nil},
		{func() { in.Guardrails = []*bocage.Guardrail{guardrail} }, all},
		{func() { in.Applications = []*bocage.Application{web} }, []string{"Application n/web spec.consumes[1]"}},
		{func() { in.Applications = []*bocage.Application{web, db} }, all},
		{func() {
			in.Workloads = []*bocage.Workload{workload(1, "n/web"), workload(2, "n/db")}
		}, all},
		{func() {
			other := *db
			other.Spec.Provides = []bocage.Provide{{Name: "sql", Port: 5433}}
			in.Applications = []*bocage.Application{web, &other}
		}, []string{"Application n/web spec.consumes[1]"}},
	} {
		change.change()
		out := compiler.Compile(in)
		var heard []string
		for _, f := range out.Findings() {
			if f.Reason == compile.Contradiction {
				heard = append(heard, f.Object.String())
				if !strings.Contains(f.Message, "allows nothing: Guardrail g spec.never[") || !strings.Contains(f.Message, "whoever joins") {
					t.Errorf("step %d: %s", step, f.Message)
				}
			}
		}
		if !slices.Equal(heard, change.told) {
			t.Errorf("step %d: told are %q, want %q", step, heard, change.told)
		}
		compareJSON(t, fmt.Sprint("step ", step), out.Findings(), compile.Compile(in).Findings())
	}
}

// thousands are more cells than a proof takes steps, each of a team of its own.
func thousands(of func(team string) bocage.CellMatch) []bocage.CellMatch {
	var out []bocage.CellMatch
	for n := range 5000 {
		out = append(out, of(fmt.Sprint("team-", n)))
	}
	return out
}

// TestProofsThatGaveUpAreTriedAgain takes away refusals that a proof ran out of steps on:
// what it can prove without them is told as if they had never been.
func TestProofsThatGaveUpAreTriedAgain(t *testing.T) {
	app := func(name string, spec bocage.ApplicationSpec) *bocage.Application {
		spec.Workload = named(name)
		return &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "n", Name: name}, Spec: spec}
	}
	many := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "a"}, Spec: bocage.GuardrailSpec{Never: thousands(func(team string) bocage.CellMatch {
		return bocage.CellMatch{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"team": team}}}}
	})}}
	all := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Workload: ptr(named("db"))}}}}}
	in := nobodyThere([]*bocage.Guardrail{many, all}, app("web", bocage.ApplicationSpec{Consumes: []bocage.Consume{{Service: "db"}}}),
		app("db", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "sql", Port: 5432}}}))
	in.Workloads = []*bocage.Workload{workload(1, "n/web"), workload(2, "n/db")}
	compiler := compile.NewCompiler()
	for _, guardrails := range [][]*bocage.Guardrail{{many, all}, {all}, {many, all}} {
		in.Guardrails = guardrails
		out := compiler.Compile(in)
		if len(out.Faults) > 0 {
			t.Fatal(out.Faults)
		}
		found := told(out.Findings(), "Application n/web spec.consumes[0]", compile.Contradiction)
		if len(guardrails) == 1 && (len(found) != 1 || !strings.Contains(found[0].Message, "whoever joins")) {
			t.Errorf("told: %v", found)
		}
		compareJSON(t, fmt.Sprint(len(guardrails), " guardrails"), out.Findings(), compile.Compile(in).Findings())
	}
}

// universe is every end that small declarations can tell from others: values that
// somebody asks for, the empty one among them, two that nobody does, and none.
type universe struct {
	workloads []map[string]string
	addresses []netip.Addr
	ports     []uint16
}

func smallUniverse() universe {
	u := universe{ports: []uint16{79, 80, 81, 82, 90}}
	const none = "none"
	values := []string{"a", "b", "", "other", "another", none}
	for _, app := range values {
		for _, team := range values {
			for _, namespace := range []string{"m", "n", "o", "p"} {
				labels := map[string]string{bocage.LabelNamespace: namespace, bocage.LabelName: "w", bocage.LabelHost: "h", bocage.LabelAssurance: "L1"}
				if app != none {
					labels["app"] = app
				}
				if team != none {
					labels["team"] = team
				}
				u.workloads = append(u.workloads, labels)
			}
		}
	}
	for _, a := range []string{"10.0.0.1", "10.0.0.127", "10.0.0.128", "10.0.0.255", "10.0.1.1", "192.0.2.1", "2001:db8::1", "2001:db9::1"} {
		u.addresses = append(u.addresses, netip.MustParseAddr(a))
	}
	return u
}

// means reports whether a side means a workload, or an address.
func means(s bocage.Side, labels map[string]string, address netip.Addr) bool {
	switch {
	case s.Outside():
		return labels == nil && slices.ContainsFunc(s.External, func(p netip.Prefix) bool { return p.Contains(address) })
	case len(s.Namespaces) == 0 && s.Workload == nil:
		return true
	case labels == nil:
		return false
	}
	return (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, labels[bocage.LabelNamespace])) && (s.Workload == nil || s.Workload.Matches(labels))
}

// left looks for a flow that a grant allows and no guardrail refuses, and tells whether
// the grant means any at all.
func (u universe) left(grant bocage.CellMatch, guardrails []*bocage.Guardrail) (left, any bool) {
	type end struct {
		labels  map[string]string
		address netip.Addr
	}
	var ends []end
	for _, labels := range u.workloads {
		ends = append(ends, end{labels: labels})
	}
	for _, a := range u.addresses {
		ends = append(ends, end{address: a})
	}
	in := func(m bocage.CellMatch, from, to end, port uint16) bool {
		return means(m.From, from.labels, from.address) && means(m.To, to.labels, to.address) && (len(m.Ports) == 0 || slices.ContainsFunc(m.Ports, func(p bocage.PortMatch) bool {
			return p.Port <= port && port <= max(p.Port, p.EndPort)
		}))
	}
	for _, from := range ends {
		if !means(grant.From, from.labels, from.address) {
			continue
		}
		for _, to := range ends {
			if from.labels == nil && to.labels == nil || !means(grant.To, to.labels, to.address) {
				continue
			}
			for _, port := range u.ports {
				if !in(grant, from, to, port) {
					continue
				}
				any = true
				refused := slices.ContainsFunc(guardrails, func(g *bocage.Guardrail) bool {
					if !in(g.Spec.Match, from, to, port) {
						return false
					}
					if s := g.Spec.Separate; s != nil && from.labels != nil && to.labels != nil {
						x, hasX := from.labels[s.Label()]
						y, hasY := to.labels[s.Label()]
						if x != y || hasX != hasY {
							return true
						}
					}
					return slices.ContainsFunc(g.Spec.Never, func(n bocage.CellMatch) bool { return in(n, from, to, port) })
				})
				if !refused {
					return true, true
				}
			}
		}
	}
	return false, any
}

// TestEmptyWhoeverJoinsByTrying says that a grant is empty whoever joins where, and only
// where, everybody who could join has been tried and refused.
func TestEmptyWhoeverJoinsByTrying(t *testing.T) {
	u := smallUniverse()
	empty, not := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		side := func() bocage.Side {
			switch rapid.IntRange(0, 6).Draw(t, "side") {
			case 0:
				return bocage.Side{}
			case 1:
				p := rapid.SampledFrom([]string{"10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32"})
				return bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(p.Draw(t, "prefix"))}}
			case 2:
				return bocage.Side{Namespaces: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"m", "n"}), 1, 2, rapid.ID[string]).Draw(t, "namespaces")}
			}
			s := &bocage.Selector{}
			for range rapid.IntRange(1, 2).Draw(t, "requirements") {
				r := bocage.Requirement{Key: rapid.SampledFrom([]string{"app", "team"}).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
				if strings.HasSuffix(r.Operator, "In") {
					r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", ""}), 1, 2, rapid.ID[string]).Draw(t, "values")
				}
				s.MatchExpressions = append(s.MatchExpressions, r)
			}
			return bocage.Side{Workload: s}
		}
		match := func() bocage.CellMatch {
			m := bocage.CellMatch{From: side(), To: side()}
			if rapid.IntRange(0, 3).Draw(t, "ported") == 0 {
				first := rapid.Uint16Range(80, 82).Draw(t, "first")
				m.Ports = []bocage.PortMatch{{Port: first, EndPort: rapid.Uint16Range(first, 82).Draw(t, "last")}}
			}
			return m
		}
		grant := match()
		var refusing []*bocage.Guardrail
		for i := range rapid.IntRange(1, 4).Draw(t, "guardrails") {
			g := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("g%d", i)}}
			if rapid.IntRange(0, 2).Draw(t, "within") == 0 {
				g.Spec.Match = match()
			}
			if rapid.IntRange(0, 2).Draw(t, "apart") == 0 {
				g.Spec.Separate = &bocage.Separate{By: rapid.SampledFrom([]string{"app", "team", "namespace"}).Draw(t, "by")}
			}
			for range rapid.IntRange(0, 2).Draw(t, "never") {
				n := match()
				if rapid.Bool().Draw(t, "wide") { // so that some cover
					n.From = bocage.Side{}
				}
				g.Spec.Never = append(g.Spec.Never, n)
			}
			if g.Spec.Separate == nil && len(g.Spec.Never) == 0 {
				g.Spec.Never = []bocage.CellMatch{match()}
			}
			refusing = append(refusing, g)
		}
		all := append(slices.Clone(refusing), &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "zz"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{grant}}})
		out := compile.Compile(nobodyThere(all))
		if len(out.Faults) > 0 {
			t.Skip(out.Faults)
		}
		found := slices.DeleteFunc(told(out.Findings(), "Guardrail zz spec.grant[0]", compile.Contradiction),
			func(f compile.Finding) bool { return !strings.Contains(f.Message, "whoever joins") })
		left, any := u.left(grant, refusing)
		if want := any && !left; want != (len(found) == 1) {
			t.Fatalf("everybody tried, something is left: %v, something is meant: %v; told: %v\n%s", left, any, found, policytest.Describe(nobodyThere(all)))
		}
		if len(found) == 0 {
			not++
			return
		}
		// Those who are named refuse it without the others, and none of them in vain.
		empty++
		named := func(but string) []*bocage.Guardrail {
			var out []*bocage.Guardrail
			for _, g := range refusing {
				kept := *g
				kept.Spec.Never, kept.Spec.Separate = nil, nil
				for i, n := range g.Spec.Never {
					if ref := fmt.Sprintf("Guardrail %s spec.never[%d]", g.Name, i); ref != but && strings.Contains(found[0].Message, ref) {
						kept.Spec.Never = append(kept.Spec.Never, n)
					}
				}
				if ref := fmt.Sprintf("Guardrail %s spec.separate", g.Name); ref != but && strings.Contains(found[0].Message, ref) {
					kept.Spec.Separate = g.Spec.Separate
				}
				out = append(out, &kept)
			}
			return out
		}
		if left, _ := u.left(grant, named("")); left {
			t.Fatalf("those who are named leave something: %s\n%s", found[0].Message, policytest.Describe(nobodyThere(all)))
		}
		for _, g := range refusing {
			for i := range g.Spec.Never {
				ref := fmt.Sprintf("Guardrail %s spec.never[%d]", g.Name, i)
				if strings.Contains(found[0].Message, ref) {
					if left, _ := u.left(grant, named(ref)); !left {
						t.Fatalf("%s is named in vain: %s\n%s", ref, found[0].Message, policytest.Describe(nobodyThere(all)))
					}
				}
			}
		}
	})
	t.Logf("%d grants are empty, %d are not", empty, not)
}
