package explain_test

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

// TestAdviceTurnsTheVerdict follows the advice on drawn flows: the objects as
// they then are say the opposite, to a judge that never saw them otherwise and
// to the compiler.
func TestAdviceTurnsTheVerdict(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		judge := explain.NewJudge(in)
		const every = 997
		keep := rapid.IntRange(0, every-1).Draw(t, "sample")
		n := 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%every != keep {
				return
			}
			before := judge.Judge(f)
			if before.ToItself() {
				return // no enforcement point sees it, and rulesets have no cell for it
			}
			advice := judge.Advise(f)
			if advice.Text == "" {
				t.Fatalf("%s: no text", f)
			}
			if len(advice.Steps) == 0 {
				if before.Would.Allowed() || f.DestinationPort != 0 {
					t.Fatalf("%s (%s, %s): no advice but %q\n%s", f, before.Would, before.Code, advice.Text, policytest.Describe(in))
				}
				return
			}
			for _, steps := range [][]explain.Step{advice.Steps, advice.Otherwise} {
				if len(steps) > 0 {
					follow(t, in, f, before, steps)
					needed(t, in, f, before, steps)
				}
			}
		})
	})
}

func follow(t *rapid.T, in compile.Input, f bocage.Flow, before explain.Judgement, steps []explain.Step) {
	var changes []explain.Change
	for _, s := range steps {
		if s.Text == "" {
			t.Fatalf("%s: a step without text", f)
		}
		if !s.Change.Delete {
			if faults := s.Change.Object.Validate(); len(faults) > 0 {
				t.Fatalf("%s: %q makes an object that is not valid: %v", f, s.Text, faults)
			}
		}
		changes = append(changes, s.Change)
	}
	changed := explain.Apply(in, changes)
	after := explain.NewJudge(changed).Judge(f)
	_, reason := compile.Compile(changed).Ruleset().Decide(f)
	switch steps[0].Change.Object.(type) {
	case *bocage.Scope: // observed before, refused afterwards
		if after.Verdict.Allowed() {
			t.Fatalf("%s: still %s after %q\n%s", f, after.Verdict, steps[0].Text, policytest.Describe(in))
		}
	default:
		if after.Would.Allowed() == before.Would.Allowed() || reason.Would.Allowed() == before.Would.Allowed() {
			t.Fatalf("%s: was %s (%s), after %d steps it is %s (%s), compiled %s; the first is %q\n%s", f, before.Would, before.Code, len(steps), after.Would, after.Code,
				reason.Would, steps[0].Text, policytest.Describe(in))
		}
	}
}

// needed leaves out each step in turn: the verdict does not turn without any of them.
func needed(t *rapid.T, in compile.Input, f bocage.Flow, before explain.Judgement, steps []explain.Step) {
	if len(steps) < 2 {
		return
	}
	for i, left := range steps {
		var changes []explain.Change
		again := false // a later step changes the same object, and holds this one's change
		for k, s := range steps {
			if k != i {
				changes = append(changes, s.Change)
			}
			again = again || k > i && isSame(s.Change.Object, left.Change.Object)
		}
		if again {
			continue
		}
		if after := explain.NewJudge(explain.Apply(in, changes)).Judge(f); after.Would.Allowed() != before.Would.Allowed() {
			t.Fatalf("%s: was %s (%s), and is %s without step %d of %d, %q, of\n%v\n%s", f, before.Would, before.Code, after.Would, i, len(steps), left.Text, textsOf(steps), policytest.Describe(in))
		}
	}
}

func isSame(a, b bocage.Resource) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && a.Meta().NamespacedName() == b.Meta().NamespacedName()
}

func textsOf(steps []explain.Step) []string {
	texts := make([]string, len(steps))
	for i, s := range steps {
		texts[i] = s.Text
	}
	return texts
}

// TestAdviceIsNoLongerThanNeeded: of what could be advised besides, nothing is.
func TestAdviceIsNoLongerThanNeeded(t *testing.T) {
	side := func(app string) bocage.Selector { return bocage.Selector{MatchLabels: map[string]string{"app": app}} }
	condition := func(name, workload string) *bocage.ThreatCondition {
		return &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ThreatConditionSpec{
			Workload: workload, Level: bocage.LevelWatch, Expires: policytest.Now.Add(time.Hour)}}
	}
	rule := func(in *compile.Input, name, app string, types ...string) {
		policy := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name}, Spec: bocage.NetworkPolicySpec{PodSelector: side(app), PolicyTypes: types}}
		if types[0] == "Ingress" {
			policy.Spec.Ingress = []bocage.NetworkPolicyIngressRule{{}}
		} else {
			policy.Spec.Egress = []bocage.NetworkPolicyEgressRule{{}}
		}
		in.NetworkPolicies = append(in.NetworkPolicies, policy)
	}
	for _, test := range []struct {
		name   string
		change func(*compile.Input)
		to     string
		port   uint16
		steps  []string
	}{
		{"consumed whole", func(in *compile.Input) {
			in.Applications[0].Spec.Consumes = []bocage.Consume{{Service: "db"}}
		}, db, 9999, []string{"in Application shop/db (db.yaml:1), add to spec.provides:"}},
		{"consumed before it is provided", func(in *compile.Input) {
			in.Applications[0].Spec.Consumes = []bocage.Consume{{Service: "db", Interface: "tcp-9999"}}
		}, db, 9999, []string{"in Application shop/db (db.yaml:1), add to spec.provides:"}},
		{"consumed otherwise", func(in *compile.Input) {
			in.Applications[0].Spec.Consumes = []bocage.Consume{{Service: "db", Interface: "sql"}}
		}, db, 9999, []string{"in Application shop/db (db.yaml:1), add to spec.provides:", "in Application shop/web (web.yaml:1), add to spec.consumes:"}},
		{"a condition of the other end", func(in *compile.Input) {
			in.ThreatConditions = []*bocage.ThreatCondition{condition("of-api", "shop/api"), condition("of-web", "shop/web")}
			in.Responses = []*bocage.Response{{ObjectMeta: bocage.ObjectMeta{Name: "away"}, Spec: bocage.ResponseSpec{
				When: bocage.ResponseWhen{Level: bocage.LevelWatch}, Then: bocage.ResponseThen{RefuseFrom: []bocage.ResponseCell{{}}}}}}
		}, api, 8080, []string{"lift it: bocage delete threatcondition of-web"}},
		{"vouched for once", func(in *compile.Input) {
			for name, level := range map[string]string{"high": "L3", "low": "L2", "higher": "L4"} {
				in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Assurance: level}}})
			}
			in.Workloads[1].Status.Assurance = "L5"
		}, api, 8080, []string{"have the identity of shop/web vouched for at L4, as Guardrail higher spec.require.assurance asks"}},
		{"either end", func(in *compile.Input) {
			for _, w := range in.Workloads {
				w.Spec.Orchestrator = bocage.OrchestratorKubernetes
			}
			rule(in, "in", "db", "Ingress")
			rule(in, "out", "web", "Egress")
		}, db, 9999, []string{"withdraw NetworkPolicy shop/in spec.ingress[0]"}},
		{"an Admin tier's refusal needs nothing else", func(in *compile.Input) {
			priority := int32(1)
			in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Name: "admin"}, Spec: bocage.ClusterNetworkPolicySpec{
				Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
				Ingress: []bocage.ClusterNetworkPolicyIngressRule{{Action: bocage.ActionAccept, From: []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: &bocage.Selector{}}}}}}}}
		}, api, 8080, []string{"set action: Deny in ClusterNetworkPolicy admin spec.ingress[0]"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := site()
			test.change(&in)
			judge := explain.NewJudge(in)
			f := bocage.Flow{Source: netip.MustParseAddr(web), Destination: netip.MustParseAddr(test.to), Protocol: bocage.ProtocolTCP, DestinationPort: test.port, At: policytest.Now}
			before := judge.Judge(f)
			advice := judge.Advise(f)
			got := textsOf(advice.Steps)
			if !slices.EqualFunc(got, test.steps, strings.HasPrefix) {
				t.Errorf("%s (%s): %q, want %q", before.Would, before.Code, got, test.steps)
			}
		})
	}
}
