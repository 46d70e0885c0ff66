package plan

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
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/policy/simulate"
)

func situation(in compile.Input) Situation {
	s, out := simulate.Compile(in)
	return Situation{Declared: in, InForce: s, Ruleset: out.Ruleset(), Now: in.Now, Prove: prove.Prove}
}

// shop is web -> api -> db, with card data in db.
func shop() compile.Input {
	in := compile.Input{Now: policytest.Now, Generation: 3}
	for i, name := range []string{"web", "api", "db"} {
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}},
			Spec:       bocage.WorkloadSpec{Host: "h1", Interface: "v" + name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}},
			Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
		in.Applications = append(in.Applications, application(name))
	}
	in.Applications[0].Spec.Consumes = []bocage.Consume{{Service: "api"}}
	in.Applications[1].Spec.Provides = []bocage.Provide{{Name: "http", Port: 8080}}
	in.Applications[1].Spec.Consumes = []bocage.Consume{{Service: "db"}}
	in.Applications[2].Spec.Provides = []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}}}
	in.Scopes = []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
	return in
}

func application(name string) *bocage.Application {
	return &bocage.Application{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Application"},
		ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{bocage.SourceAnnotation: name + ".yaml:1"}},
		Spec:       bocage.ApplicationSpec{Workload: bocage.Selector{MatchLabels: map[string]string{"app": name}}}}
}

func edge(from, to string, port uint16, flows int64, first, last time.Duration) bocage.Edge {
	return bocage.Edge{Source: from, Destination: to, Protocol: bocage.ProtocolTCP, DestinationPort: port, Flows: flows, Replied: flows,
		First: policytest.Now.Add(-first), Last: policytest.Now.Add(-last)}
}

// TestEnforcement: a plan names the workloads whose refusals begin or cease to hold.
func TestEnforcement(t *testing.T) {
	in := shop()
	simulator, out := simulate.Compile(in)
	s := Situation{Declared: in, InForce: simulator, Ruleset: out.Ruleset(), Now: in.Now,
		Prove: func(compile.Input, *bocage.Ruleset) []bocage.Proof { return nil }}
	scope := in.Scopes[0]
	result := Make(s, []bocage.Resource{&bocage.Scope{TypeMeta: bocage.TypeMeta{Kind: "Scope"}, ObjectMeta: scope.ObjectMeta,
		Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce, Workload: bocage.Selector{MatchLabels: map[string]string{"app": "db"}}}}})
	if !slices.Equal(result.Observed, []string{"shop/api", "shop/web"}) || len(result.Enforced) > 0 || len(result.Faults) > 0 {
		t.Errorf("enforced %v, observed %v, %v", result.Enforced, result.Observed, result.Faults)
	}
}

func gone(object bocage.Resource) bocage.Resource {
	at := policytest.Now
	object.Meta().DeletionTimestamp = &at
	return object
}

func TestPlan(t *testing.T) {
	queries := edge("shop/api", "shop/db", 5432, 400, 9*day, 0)
	queries.Spoken = bocage.SpeechPostgreSQL
	edges := []bocage.Edge{
		edge("shop/web", "shop/api", 8080, 900, 9*day, 0), queries,
		edge("shop/web", "203.0.113.9", 443, 30, 8*day, 0), edge("shop/old", "shop/db", 5432, 3, day, 0),
	}
	never := &bocage.Guardrail{TypeMeta: bocage.TypeMeta{Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: "pci"},
		Spec: bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, Require: &bocage.Duties{Log: "full", Rate: "20/s"}}}
	moved := application("api")
	moved.Spec.Provides = []bocage.Provide{{Name: "http", Port: 8090}}
	moved.Spec.Consumes = []bocage.Consume{{Service: "db"}}
	web := application("web")
	web.Spec.Consumes = []bocage.Consume{{Service: "api"}, {External: bocage.ExternalPrefix(netip.MustParsePrefix("203.0.113.0/24")), Port: 443}, {External: bocage.ExternalPrefix(netip.MustParsePrefix("198.51.100.0/24")), Port: 443}}
	speaking := func(protocol string) *bocage.Application {
		db := application("db")
		db.Spec.Provides = []bocage.Provide{{Name: "sql", Port: 5432, AppProtocol: protocol}}
		return db
	}
	test := &bocage.PolicyTest{TypeMeta: bocage.TypeMeta{Kind: "PolicyTest"}, ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "t"}, Spec: bocage.PolicyTestSpec{
		Cases: []bocage.PolicyTestCase{{From: "shop/web", To: "shop/api", Port: 8080, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}, Because: "customers"}}}}

	for _, c := range []struct {
		name    string
		objects []bocage.Resource
		want    []string // lines of the digest of the result
		not     []string
	}{
		{"nothing", []bocage.Resource{application("other")}, []string{"replayed 3", "finding Application shop/other spec.workload"}, []string{"refused", "reach"}},
		{"a port moves", []bocage.Resource{moved}, []string{
			"refused shop/web shop/api 8080 by Default deny, ask shop/web", "reach 8080 allow drop", "reach 8090 drop allow",
			"unused Application shop/api spec.provides[0] (api.yaml:1)", "test shop/t cases[0] customers"}, []string{"unused Application shop/api spec.consumes"}},
		{"an interface is consumed outside", []bocage.Resource{web}, []string{
			"allowed shop/web 203.0.113.9 443 by Application shop/web spec.consumes[1] (web.yaml:1), ask shop/web",
			"unused Application shop/web spec.consumes[2] (web.yaml:1)"}, []string{"spec.consumes[1] (web.yaml:1)\nunused", "refused"}},
		{"a duty comes", []bocage.Resource{never}, []string{
			"duties shop/api shop/db 5432 [] -> [log=full rate=20/s] by Guardrail pci spec.require.log, ask shop/db"}, []string{"refused"}},
		{"a protocol must be spoken that flows did not", []bocage.Resource{speaking("http")}, []string{
			"refused shop/api shop/db 5432 by Application shop/db spec.provides[0].appProtocol (db.yaml:1), ask shop/db"}, []string{"duties"}},
		{"the protocol must be spoken that flows did", []bocage.Resource{speaking("postgresql")}, []string{
			"duties shop/api shop/db 5432 [] -> [verify=postgresql]"}, []string{"refused"}},
		{"an application goes", []bocage.Resource{gone(application("db"))}, []string{
			"refused shop/api shop/db 5432 by Default deny, ask shop/api", "reach 5432 allow drop", "finding Application shop/api spec.consumes[0].service"}, []string{"fault Application"}},
		{"what is not there cannot go", []bocage.Resource{gone(application("cache"))}, []string{"fault Application shop/cache is not declared, so that it cannot be deleted"}, nil},
		{"a test that fails is changed", []bocage.Resource{moved, gone(test)}, []string{"reach 8090 drop allow"}, []string{"test "}},
		{"twice", []bocage.Resource{moved, moved}, []string{"fault Application shop/api is there twice"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := situation(shop())
			s.Edges, s.Recorded = edges, true
			s.Tests = []*bocage.PolicyTest{{ObjectMeta: test.ObjectMeta, Spec: test.Spec}}
			s.Tests[0].DeletionTimestamp = nil
			text := digest(Make(s, c.objects))
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("lacks %q:\n%s", want, text)
				}
			}
			for _, not := range c.not {
				if strings.Contains(text, not) {
					t.Errorf("has %q:\n%s", not, text)
				}
			}
		})
	}
}

func digest(r bocage.PlanResult) string {
	var b strings.Builder
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "fault %s %s\n", f.Field, f.Message)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "finding %s %s\n", f.Field, f.Message)
	}
	for _, c := range r.Reach {
		fmt.Fprintf(&b, "reach %s %s %s\n", c.Ports, c.Before, c.After)
	}
	fmt.Fprintf(&b, "replayed %d\n", r.Replayed)
	for _, e := range r.NewlyRefused {
		fmt.Fprintf(&b, "refused %s %s %d by %s, ask %s\n", e.Source, e.Destination, e.DestinationPort, e.By, e.Owner)
	}
	for _, e := range r.NewlyAllowed {
		fmt.Fprintf(&b, "allowed %s %s %d by %s, ask %s\n", e.Source, e.Destination, e.DestinationPort, e.By, e.Owner)
	}
	for _, e := range r.DutyChanged {
		fmt.Fprintf(&b, "duties %s %s %d %v -> %v by %s, ask %s\n", e.Source, e.Destination, e.DestinationPort, e.Before, e.After, e.By, e.Owner)
	}
	for _, u := range r.Unused {
		fmt.Fprintf(&b, "unused %s\n", u)
	}
	for _, x := range r.Tests {
		fmt.Fprintf(&b, "test %s %s %s\n", x.Test, x.Case, x.Because)
	}
	return b.String()
}

// TestWarnings tells short recordings from long ones.
// TestContradictionInAnyOrder: what stands beside what refuses all of it can be declared
// beside it, too, with a remark; or a site could not be declared anew as it stands.
func TestContradictionInAnyOrder(t *testing.T) {
	rail := func(name string, spec bocage.GuardrailSpec) *bocage.Guardrail {
		return &bocage.Guardrail{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec}
	}
	match := []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"shop"}}, Ports: []bocage.PortMatch{{Port: 22}}}}
	grant := rail("grant", bocage.GuardrailSpec{Grant: match})
	for _, admits := range []bool{false, true} {
		never := rail("never", bocage.GuardrailSpec{Never: match, Exceptions: bocage.ExceptionTerms{Allowed: admits}})
		for name, order := range map[string][2][]*bocage.Guardrail{
			"the grant first": {{grant}, {never}}, "the refusal first": {{never}, {grant}}, "both at once": {nil, {grant, never}},
		} {
			in := shop()
			in.Guardrails = order[0]
			s := situation(in)
			var objects []bocage.Resource
			for _, g := range order[1] {
				objects = append(objects, g)
			}
			r := Make(s, objects)
			said := false
			for _, w := range r.Findings {
				said = said || strings.Contains(w.Message, "allows nothing")
				if admits && strings.Contains(w.Message, "whoever joins") {
					t.Errorf("%s, with exceptions admitted: %s", name, w.Message)
				}
			}
			if len(r.Faults) > 0 || !said {
				t.Errorf("%s, exceptions admitted %t: %v, %v", name, admits, r.Faults, r.Findings)
			}
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct {
		name  string
		edges []bocage.Edge
		want  []string
		not   []string
	}{
		{"nothing recorded", nil, []string{"no flow is recorded"}, nil},
		{"an afternoon", []bocage.Edge{edge("a/a", "a/b", 80, 100, 4*time.Hour, 0)}, []string{"covers 4 hours", "nightly job"}, []string{"seldom"}},
		{"three days", []bocage.Edge{edge("a/a", "a/b", 80, 100, 3*day, 0)}, []string{"3.0 days", "once a week"}, []string{"nightly"}},
		{"a month", []bocage.Edge{edge("a/a", "a/b", 80, 100, 30*day, 0)}, nil, []string{"missing"}},
		{"a monthly report", []bocage.Edge{edge("a/a", "a/b", 80, 100, 40*day, 0), edge("a/c", "a/b", 443, 2, 35*day, 5*day)},
			[]string{"1 recorded kind of flow comes back less often than twice", "(a/c to a/b TCP/443, about every 30.0 days)"}, nil},
		{"many were seen once", slices.Repeat([]bocage.Edge{edge("a/a", "a/b", 80, 1, 10*day, 10*day), edge("a/a", "a/b", 81, 900, 10*day, 0)}, 5),
			[]string{"5 kinds of flow were seen only once", "about 10 more"}, []string{"less often"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r bocage.PlanResult
			for _, e := range c.edges {
				r.Recorded = widen(r.Recorded, e)
			}
			text := warnings(&r, c.edges).Error()
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("lacks %q:\n%s", want, text)
				}
			}
			for _, not := range c.not {
				if strings.Contains(text, not) {
					t.Errorf("has %q:\n%s", not, text)
				}
			}
		})
	}
}

// TestApprovals plans what comes once a second person has agreed.
func TestApprovals(t *testing.T) {
	in := shop()
	guardrail := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g", Generation: 1}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "api"}}}}}, Exceptions: bocage.ExceptionTerms{Allowed: true, Approvers: []string{"group:ciso"}}},
		Status: bocage.GuardrailStatus{Approval: &bocage.Approval{Generation: 1}}}
	in.Guardrails = []*bocage.Guardrail{guardrail}
	changed := *guardrail
	changed.Spec.Never = []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "web"}}}}}
	changed.Status.Approval = &bocage.Approval{Generation: 0} // whatever its author writes there
	exception := &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "e"}, Spec: bocage.ExceptionSpec{Guardrail: "g",
		Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}}, Until: policytest.Now.Add(time.Hour)}}
	s := situation(in)
	s.Recorded, s.Edges = true, []bocage.Edge{edge("shop/web", "shop/api", 8080, 900, 9*day, 0), edge("shop/api", "shop/db", 5432, 900, 9*day, 0)}
	text := digest(Make(s, []bocage.Resource{&changed}))
	for _, want := range []string{"finding Guardrail g a second person has to approve", "refused shop/web shop/api 8080 by Guardrail g spec.never[0]", "allowed shop/api shop/db"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	same := *guardrail
	same.Spec.Exceptions.Approvers = slices.Clone(same.Spec.Exceptions.Approvers)
	same.Spec.Grant = []bocage.CellMatch{} // as a reader that writes out what is empty leaves it
	guardrail.Status.Approval = &bocage.Approval{Approved: &guardrail.Spec}
	if text := digest(Make(s, []bocage.Resource{&same})); strings.Contains(text, "second person") {
		t.Errorf("nothing was changed that anybody approves:\n%s", text)
	}
	text = digest(Make(s, []bocage.Resource{exception}))
	for _, want := range []string{"finding Exception e has to be approved by group:ciso", "allowed shop/api shop/db"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

// TestPlanIsWhatComes plans drawn objects on drawn policies: the plan's candidate
// is what compiling them all gives, and each replayed edge is told exactly when
// two judges say so.
func TestPlanIsWhatComes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, other := policytest.Draw(t), policytest.Draw(t)
		var objects []bocage.Resource
		for _, a := range other.Applications {
			if !slices.ContainsFunc(objects, func(o bocage.Resource) bool { return o.Meta().NamespacedName() == a.NamespacedName() }) {
				objects = append(objects, a)
			}
		}
		for i, g := range in.Guardrails {
			if i == 0 {
				objects = append(objects, gone(&bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: g.Name}}))
			}
		}
		s := situation(in)
		s.Recorded, s.Prove = true, func(compile.Input, *bocage.Ruleset) []bocage.Proof { return nil }
		for range 40 {
			s.Edges = append(s.Edges, bocage.Edge{Source: rapid.SampledFrom(policytest.Addresses()).Draw(t, "from").String(),
				Destination: rapid.SampledFrom(policytest.Addresses()).Draw(t, "to").String(), Protocol: bocage.ProtocolTCP,
				DestinationPort: rapid.SampledFrom(policytest.Ports()[1:]).Draw(t, "port"), Flows: 1, First: in.Now, Last: in.Now})
		}
		r := Make(s, objects)
		if len(r.Faults) > 0 {
			return
		}
		merged := Merge(in, objects, in.Now)
		if digest := compile.Compile(merged).Ruleset().Digest; r.Digest != digest {
			t.Fatalf("the candidate is %s, compiled it is %s", r.Digest, digest)
		}
		before, after := explain.NewJudge(in), explain.NewJudge(merged)
		told := map[string]string{}
		for what, list := range map[string][]bocage.PlannedEdge{"refused": r.NewlyRefused, "allowed": r.NewlyAllowed} {
			for _, e := range list {
				told[fmt.Sprint(e.Source, e.Destination, e.DestinationPort)] = what
			}
		}
		for _, e := range s.Edges {
			f := bocage.Flow{Source: netip.MustParseAddr(e.Source), Destination: netip.MustParseAddr(e.Destination), Protocol: e.Protocol, DestinationPort: e.DestinationPort}
			was, is := before.Judge(f), after.Judge(f)
			if was.ToItself() || is.ToItself() || f.Source.Is4() != f.Destination.Is4() {
				continue
			}
			want := ""
			switch {
			case was.Would.Allowed() && !is.Would.Allowed():
				want = "refused"
			case !was.Would.Allowed() && is.Would.Allowed():
				want = "allowed"
			}
			if got := told[fmt.Sprint(e.Source, e.Destination, e.DestinationPort)]; got != want {
				t.Fatalf("%s: told %q, want %q", f, got, want)
			}
		}
	})
}

// BenchmarkPlan plans one changed Application on a large site, with as many
// recorded edges; proofs apart, which have a benchmark of their own.
func BenchmarkPlan(b *testing.B) {
	const size = 100_000
	in := policytest.Site(size)
	s := situation(in)
	s.Recorded, s.Prove = true, func(compile.Input, *bocage.Ruleset) []bocage.Proof { return nil }
	r := rand.New(rand.NewPCG(1, 1))
	for range size {
		from, to := in.Workloads[r.IntN(size)], in.Workloads[r.IntN(size)]
		s.Edges = append(s.Edges, edge(from.NamespacedName(), to.NamespacedName(), 8080, 3, day, 0))
	}
	changed := *in.Applications[0]
	changed.Kind = "Application"
	changed.Spec.Provides = slices.Clone(changed.Spec.Provides)
	changed.Spec.Provides[0].Port = 8181
	for b.Loop() {
		Make(s, []bocage.Resource{&changed})
	}
}
