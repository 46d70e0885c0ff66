package simulate

import (
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
)

// TestAnswersAgreeWithTheJudge holds answers against the objects themselves: the
// verdict, the reason, and the smallest change, which is looked for among the
// few objects that have a say and must be the one that all of them give.
func TestAnswersAgreeWithTheJudge(t *testing.T) {
	answers := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		s, _ := Compile(in)
		judge := explain.NewJudge(in)
		skip := rapid.IntRange(0, 330).Draw(t, "sample")
		n := 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%331 != skip || f.Protocol.HasPorts() && f.DestinationPort == 0 || f.Protocol == bocage.ProtocolAny {
				return
			}
			if !f.Protocol.HasPorts() {
				f.DestinationPort = 0
			}
			answers++
			f.At = in.Now
			g := judge.Judge(f)
			a := s.Answer(bocage.SimulateProbe{From: f.Source.String(), To: f.Destination.String(), Port: f.DestinationPort, Protocol: f.Protocol.String()})
			if f.Source.Is4() != f.Destination.Is4() || !carries(s.Find(f.Source), f.Protocol) {
				if a.Error == "" {
					t.Fatalf("%s: answered %+v, although the families differ", f, a)
				}
				return
			}
			if g.ToItself() {
				w := s.workloadAt(s.Find(f.Source))
				if w.Spec.Orchestrator == bocage.OrchestratorKubernetes && a.Verdict != "allow" {
					t.Fatalf("%s: a Pod is kept from itself: %+v", f, a)
				}
				return // rulesets have no cell for it
			}
			if g.Code == bocage.ReasonDefaultDeny && s.isNodes(s.Find(f.Source), s.Find(f.Destination)) {
				if a.Verdict != "allow" {
					t.Fatalf("%s: nobody refuses it, no workload is at either end and a node is: %+v", f, a)
				}
				return
			}
			if a.Error != "" || (a.Verdict == "allow") != g.Would.Allowed() || a.Disposition != g.Would.String() || a.Reason != g.Code.String() {
				t.Fatalf("%s: answered %+v, the objects say %s (%s)\n%s", f, a, g.Would, g.Code, policytest.Describe(in))
			}
			if a.Enforced != !g.Verdict.Allowed() {
				t.Fatalf("%s: enforced %v, want verdict %s", f, a.Enforced, g.Verdict)
			}
			want := judge.Advise(f).Text
			if _, change, only := strings.Cut(want, onlyObserved); only {
				want = change
			}
			if a.Missing != want {
				t.Fatalf("%s: near is missing\n%s\nof all objects\n%s\n%s", f, a.Missing, want, policytest.Describe(in))
			}
		})
	})
	if answers < 2000 {
		t.Errorf("only %d answers", answers)
	}
}

// TestMissingKnowsWhatAnAssuranceBrings: who is vouched for at another level is
// selected by other policies, which have their say then.
func TestMissingKnowsWhatAnAssuranceBrings(t *testing.T) {
	in := compile.Input{Now: policytest.Now, Workloads: []*bocage.Workload{{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec:   bocage.WorkloadSpec{Host: "h1", Orchestrator: bocage.OrchestratorKubernetes, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst, Assurance: "L0"}}}}
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "vouched"}, Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Assurance: "L2"}}}}
	in.NetworkPolicies = []*bocage.NetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "closed"}, Spec: bocage.NetworkPolicySpec{
		PodSelector: bocage.Selector{MatchLabels: map[string]string{bocage.LabelAssurance: "L2"}}, PolicyTypes: []string{"Egress"}}}}
	s, _ := Compile(in)
	missing := s.Answer(bocage.SimulateProbe{From: "shop/web", To: "198.51.100.7", Port: 443}).Missing
	if !strings.Contains(missing, "vouched for at L2") || !strings.Contains(missing, "NetworkPolicy shop/closed") {
		t.Errorf("missing: %s", missing)
	}
}

// small is two applications, a guardrail with duties and an exception, and Pods.
func small() compile.Input {
	now := policytest.Now
	workload := func(i byte, namespace, name string, labels map[string]string) *bocage.Workload {
		return &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
			Spec:   bocage.WorkloadSpec{Host: "h1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, i})}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}}
	}
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	return compile.Input{
		Now: now,
		Workloads: []*bocage.Workload{
			workload(1, "shop", "web", app("web")), workload(2, "shop", "api", app("api")), workload(3, "shop", "db", app("db")),
			workload(4, "dev", "tool", app("tool")), workload(5, "dev", "web", app("web")),
		},
		Applications: []*bocage.Application{
			{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "api", Annotations: map[string]string{bocage.SourceAnnotation: "shop.yaml:7"}}, Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: app("api")},
				Provides: []bocage.Provide{{Name: "http", Port: 8080}},
				Consumes: []bocage.Consume{{Service: "db"}, {External: bocage.ExternalPrefix(netip.MustParsePrefix("203.0.113.0/24")), Port: 443}}}},
			{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: app("web")}, Consumes: []bocage.Consume{{Service: "api"}}}},
			{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: app("db")}, Provides: []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}}}}},
		},
		Guardrails: []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "pci"}, Spec: bocage.GuardrailSpec{
			Match:      bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
			Never:      []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"dev"}}}},
			Require:    &bocage.Duties{Log: "full", Witness: true},
			Grant:      []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"dev"}}, To: bocage.Side{Namespaces: []string{"shop"}}}},
			Exceptions: bocage.ExceptionTerms{Allowed: true}}}},
		Exceptions: []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "audit"}, Spec: bocage.ExceptionSpec{
			Guardrail: "pci", Match: bocage.CellMatch{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: app("tool")}}},
			From: now.Add(time.Hour), Until: now.Add(2 * time.Hour)}}},
	}
}

func TestAnswers(t *testing.T) {
	s, out := Compile(small())
	for _, f := range out.Findings() {
		if f.Rejected {
			t.Errorf("%s: %s", f.Object, f.Message)
		}
	}
	for _, test := range []struct {
		probe                    bocage.SimulateProbe
		verdict, reason, decider string
		file                     string
		line                     int
		duties                   []string
		missing                  string
	}{
		{bocage.SimulateProbe{From: "shop/web", To: "shop/api", Port: 8080}, "allow", "rule", "Application shop/api spec.provides[0]", "shop.yaml", 7, nil, "to refuse it"},
		{bocage.SimulateProbe{From: "shop/web", To: "api", Port: 8080}, "allow", "rule", "Application shop/api spec.provides[0]", "shop.yaml", 7, nil, "to refuse it"},
		{bocage.SimulateProbe{From: "shop/web", To: "shop/api", Port: 8081}, "deny", "default-deny", "", "", 0, nil, "port: 8081"},
		{bocage.SimulateProbe{From: "shop/api", To: "shop/db", Port: 5432, Protocol: "tcp"}, "allow", "rule", "Application shop/db spec.provides[0]", "", 0, []string{"log=full", "witness"}, ""},
		{bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 5432}, "deny", "guardrail", "Guardrail pci spec.never[0]", "", 0, nil, ""},
		{bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 5432, At: policytest.Now.Add(90 * time.Minute)}, "allow", "rule", "Guardrail pci spec.grant[0]", "", 0, nil, ""},
		{bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 5432, At: policytest.Now.Add(2 * time.Hour)}, "deny", "guardrail", "Guardrail pci spec.never[0]", "", 0, nil, ""},
		{bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 5432, At: policytest.Now.Add(-24 * time.Hour)}, "deny", "guardrail", "Guardrail pci spec.never[0]", "", 0, nil, ""},
		{bocage.SimulateProbe{From: "10.0.0.2", To: "203.0.113.9", Port: 443}, "allow", "rule", "Application shop/api spec.consumes[1]", "shop.yaml", 7, nil, ""},
		{bocage.SimulateProbe{From: "198.51.100.1", To: "203.0.113.9", Port: 443}, "deny", "default-deny", "", "", 0, nil, "neither end is a workload"},
		{bocage.SimulateProbe{From: "shop/web", To: "shop/db", Protocol: "ICMP"}, "deny", "default-deny", "", "", 0, nil, ""},
	} {
		a := s.Answer(test.probe)
		d := a.Decision
		decider := strings.TrimSpace(d.Kind + " " + strings.TrimPrefix(d.Namespace+"/"+d.Name, "/") + " " + d.Field)
		if a.Error != "" || a.Verdict != test.verdict || a.Reason != test.reason || strings.Trim(decider, "/ ") != test.decider || d.File != test.file || d.Line != test.line ||
			!slices.Equal(a.Duties, append([]string{}, test.duties...)) || !strings.Contains(a.Missing, test.missing) {
			t.Errorf("%+v\nanswered %+v", test.probe, a)
		}
		if a.Duties == nil {
			t.Errorf("%+v: duties are null", test.probe)
		}
	}
}

func TestAnswersWithoutOne(t *testing.T) {
	in := small()
	in.Workloads = append(in.Workloads,
		&bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "dev", Name: "late"}, Spec: bocage.WorkloadSpec{Host: "h1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			Status: bocage.WorkloadStatus{Identity: 999}},
		&bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "dev", Name: "six"}, Spec: bocage.WorkloadSpec{Host: "h1", Addresses: []netip.Addr{netip.MustParseAddr("fd00::6")}},
			Status: bocage.WorkloadStatus{Identity: 1000}})
	in.Hosts = []*bocage.Host{{ObjectMeta: bocage.ObjectMeta{Name: "h1"}}, {ObjectMeta: bocage.ObjectMeta{Name: "h2"}, Spec: bocage.HostSpec{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}}}
	s, _ := Compile(in)
	s.Names(map[string][]netip.Addr{"kube/proxy": {netip.MustParseAddr("192.0.2.2")}}, map[string]string{"kube/job": "Pod kube/job has ended"})
	for _, test := range []struct {
		probe bocage.SimulateProbe
		want  string
	}{
		{bocage.SimulateProbe{To: "shop/api", Port: 1}, "from: is empty"},
		{bocage.SimulateProbe{From: "shop/api", To: "shop/nobody", Port: 1}, `to: "shop/nobody" is neither an address nor a workload`},
		{bocage.SimulateProbe{From: "web", To: "shop/api", Port: 1}, `from: "web" is the name of several workloads`},
		{bocage.SimulateProbe{From: "dev/late", To: "shop/api", Port: 1}, "10.0.0.1 is the address of the older workload shop/web"},
		{bocage.SimulateProbe{From: "dev/six", To: "shop/api", Port: 1}, "no address of the same family"},
		{bocage.SimulateProbe{From: "h1", To: "shop/api", Port: 1}, "h1 has no addresses"},
		{bocage.SimulateProbe{From: "h2", To: "shop/api", Port: 1}, ""},
		{bocage.SimulateProbe{From: "kube/proxy", To: "shop/api", Port: 1}, ""},
		{bocage.SimulateProbe{From: "kube/job", To: "shop/api", Port: 1}, "has ended"},
		{bocage.SimulateProbe{From: "kube/job", To: "shop/api", Port: 1, At: policytest.Now.Add(time.Hour)}, "has ended"},
		{bocage.SimulateProbe{From: "fe80::1%eth0", To: "shop/api", Port: 1}, "has a zone"},
		{bocage.SimulateProbe{From: "shop/web", To: "shop/api"}, "port: TCP needs a destination port"},
		{bocage.SimulateProbe{From: "shop/web", To: "shop/api", Port: 1, Protocol: "any"}, "name one protocol"},
		{bocage.SimulateProbe{From: "shop/web", To: "shop/api", Port: 1, Protocol: "http"}, "neither TCP"},
	} {
		a := s.Answer(test.probe)
		if (test.want == "") != (a.Error == "") || !strings.Contains(a.Error, test.want) {
			t.Errorf("%+v: error %q, want %q", test.probe, a.Error, test.want)
		}
		if a.Error != "" && (a.Verdict != "" || a.Reason != "" || a.Decision.Kind != "") {
			t.Errorf("%+v: an error beside %+v", test.probe, a)
		}
	}
}

// TestMomentsShareCompilations: what is the same all day is compiled once.
func TestMomentsShareCompilations(t *testing.T) {
	s, _ := Compile(small())
	for i := range 500 {
		s.Answer(bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 5432, At: policytest.Now.Add(time.Duration(i*17%500) * time.Minute)})
	}
	if n := len(s.moments.list); n != 3 { // before, during and after the exception
		t.Errorf("%d stretches of time are kept, want 3", n)
	}
}

// TestAdviceOfAMoment: what would change a verdict at a moment does not depend on what else
// was asked before.
func TestAdviceOfAMoment(t *testing.T) {
	in := small()
	in.Exceptions = nil
	in.Guardrails = append(slices.Clone(in.Guardrails), &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "no-ssh"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 22}}}}, Exceptions: bocage.ExceptionTerms{Allowed: true, Max: "30m"}}})
	ask := func(s *Simulator, after time.Duration) string {
		return s.Answer(bocage.SimulateProbe{From: "dev/tool", To: "shop/db", Port: 22, At: policytest.Now.Add(after)}).Missing
	}
	both, _ := Compile(in)
	for _, after := range []time.Duration{50 * time.Hour, 52 * time.Hour, 49 * time.Hour} {
		alone, _ := Compile(in)
		want := ask(alone, after)
		if !strings.Contains(want, "declare an Exception to Guardrail no-ssh") {
			t.Fatalf("after %s: %q", after, want)
		}
		if got := ask(both, after); got != want {
			t.Errorf("after %s and others: %q, and alone: %q", after, got, want)
		}
	}
}

// TestCasesSayWhatAnswersSay asks both ways about a Pod that policy closes to all
// others: nothing stands between it and itself.
func TestCasesSayWhatAnswersSay(t *testing.T) {
	pod := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "a", Labels: map[string]string{"app": "a"}},
		Spec:   bocage.WorkloadSpec{Host: "h", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Orchestrator: bocage.OrchestratorKubernetes},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst}}
	s, _ := Compile(compile.Input{Now: policytest.Now, Workloads: []*bocage.Workload{pod}, NetworkPolicies: []*bocage.NetworkPolicy{{
		ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "closed"}, Spec: bocage.NetworkPolicySpec{PolicyTypes: []string{"Ingress"}}}}})
	if a := s.Answer(bocage.SimulateProbe{From: "x/a", To: "x/a", Port: 80}); a.Verdict != "allow" {
		t.Errorf("the probe: %+v", a)
	}
	everyone := &bocage.Side{Namespaces: []string{"x"}}
	for _, r := range s.Test([]*bocage.PolicyTest{{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "t"}, Spec: bocage.PolicyTestSpec{Cases: []bocage.PolicyTestCase{
		{From: "x/a", To: "x/a", Port: 80, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}},
		{FromAll: everyone, ToAll: everyone, Port: 80, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}},
	}}}}) {
		if !r.Passed {
			t.Errorf("%s: want %s, got %s", r.Case, r.Want, r.Got)
		}
	}
}

// TestPortsOfProtocolsWithoutAny: scripts write a port with every protocol.
func TestPortsOfProtocolsWithoutAny(t *testing.T) {
	s, _ := Compile(small())
	for _, protocol := range []string{"ICMP", "47"} {
		with := s.Answer(bocage.SimulateProbe{From: "shop/web", To: "shop/api", Port: 80, Protocol: protocol})
		without := s.Answer(bocage.SimulateProbe{From: "shop/web", To: "shop/api", Protocol: protocol})
		if with.Port != 80 || with.Error != "" || with.Verdict == "" {
			t.Errorf("%+v", with)
		}
		if with.Port = 0; !reflect.DeepEqual(with, without) {
			t.Errorf("%+v\nwithout a port %+v", with, without)
		}
	}
}
