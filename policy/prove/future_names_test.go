package prove

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// TestGuardrailsMeetNames finds, for workloads that nobody has yet, the flows to names
// about which guardrails say something; shows that they hold there; and that it would be
// seen if they did not.
func TestGuardrailsMeetNames(t *testing.T) {
	to := func(prefixes ...string) bocage.Side {
		var s bocage.Side
		for _, p := range prefixes {
			s.External = append(s.External, netip.MustParsePrefix(p))
		}
		return s
	}
	never := func(from, to bocage.Side) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: from, To: to}}}
	}
	require := func(to bocage.Side) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Match: bocage.CellMatch{To: to}, Require: &bocage.Duties{Log: "full", Witness: true}}
	}
	of := func(namespaces ...string) bocage.Side { return bocage.Side{Namespaces: namespaces} }
	one := int32(1)
	rule := func(action string, protocols []bocage.ClusterNetworkPolicyProtocol, peer bocage.ClusterNetworkPolicyEgressPeer) bocage.ClusterNetworkPolicyEgressRule {
		return bocage.ClusterNetworkPolicyEgressRule{Action: action, Protocols: protocols, To: []bocage.ClusterNetworkPolicyEgressPeer{peer}}
	}
	names := bocage.ClusterNetworkPolicyEgressPeer{DomainNames: []string{"*.Example.com."}}
	cluster := func(namespaces bocage.Selector, rules ...bocage.ClusterNetworkPolicyEgressRule) *bocage.ClusterNetworkPolicy {
		return &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{
			Tier: bocage.TierAdmin, Priority: &one, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &namespaces}, Egress: rules}}
	}
	accept := rule(bocage.ActionAccept, nil, names)
	team := bocage.Selector{MatchLabels: map[string]string{"team": "a"}}
	for _, test := range []struct {
		name      string
		policy    *bocage.ClusterNetworkPolicy // nil: an application of shop consumes the name
		guardrail bocage.GuardrailSpec
		possible  bool
	}{
		{"at some addresses", nil, never(bocage.Side{}, to("198.51.100.0/24")), true},
		{"anywhere", nil, never(bocage.Side{}, to("0.0.0.0/0", "::/0")), true},
		{"to anybody", nil, never(of("shop"), bocage.Side{}), true},
		{"from another namespace", nil, never(of("dev"), to("198.51.100.0/24")), false},
		{"on this host", nil, never(bocage.Side{}, to("127.0.0.0/8", "fe80::/10")), false},
		{"on this host or somewhere", nil, never(bocage.Side{}, to("127.0.0.0/8", "224.0.0.0/4", "192.0.2.0/24")), true},
		{"inside", nil, never(bocage.Side{}, of("shop")), false},
		{"a duty somewhere", nil, require(to("198.51.100.0/24")), true},
		{"a duty to anybody", nil, require(bocage.Side{}), true},
		{"apart", nil, bocage.GuardrailSpec{Separate: &bocage.Separate{By: "env"}}, false},
		{"accepted", cluster(bocage.Selector{}, accept), never(of("dev"), to("198.51.100.0/24")), true},
		{"accepted, and a duty", cluster(bocage.Selector{}, accept), require(to("198.51.100.0/24")), true},
		{"accepted behind what denies", cluster(bocage.Selector{}, rule(bocage.ActionDeny, nil, bocage.ClusterNetworkPolicyEgressPeer{Networks: []string{"0.0.0.0/0", "::/0"}}), accept), never(of("dev"), to("198.51.100.0/24")), true},
		{"accepted for others", cluster(team, accept), never(of("dev"), to("198.51.100.0/24")), false},
		{"accepted for these", cluster(team, accept), never(of("pay"), to("198.51.100.0/24")), true},
		{"accepted for whoever", cluster(team, accept), never(bocage.Side{}, to("198.51.100.0/24")), true},
		{"accepted for a namespace that is not declared", cluster(bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: "later"}}, accept), never(bocage.Side{}, to("198.51.100.0/24")), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := contract()
			in.Applications = nil
			for name, team := range map[string]string{"dev": "b", "pay": "a"} {
				in.Namespaces = append(in.Namespaces, &bocage.Namespace{ObjectMeta: bocage.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}})
			}
			if test.policy != nil {
				in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, test.policy)
			} else {
				in.Applications = []*bocage.Application{{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: bocage.ApplicationSpec{
					Workload: bocage.Selector{MatchLabels: map[string]string{"app": "web"}}, Consumes: []bocage.Consume{{External: bocage.External{Name: "*.example.com"}, Port: 443}}}}}
			}
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: test.guardrail}}
			for _, o := range in.ClusterNetworkPolicies {
				if faults := o.Validate(); len(faults) > 0 {
					t.Fatal(faults)
				}
			}
			var witnesses []witness
			for _, o := range obligations(in) {
				for _, a := range allowances(in) {
					if w, found := imagine(vocabularyOf(in).near(o, a), o, a); found && a.name != "" {
						witnesses = append(witnesses, w)
					}
				}
			}
			if (len(witnesses) > 0) != test.possible {
				t.Errorf("%d witnesses, possible: %v", len(witnesses), test.possible)
			}
			p := new(future).prove(in)
			if !p.Holds || strings.Contains(p.Statement, "towards DNS names, wherever those are") != test.possible {
				t.Errorf("%s: %t, %s", p.Statement, p.Holds, p.Counterexample)
			}
			lost := in
			lost.Guardrails = nil
			if counter := refute(lost, witnesses); test.possible && !strings.Contains(counter, " as any.example.com ") {
				t.Errorf("without the guardrail the counterexample is %q", counter)
			}
		})
	}
}

// TestNamesAreProvedAnew edits what a remembered proof about names depends on.
func TestNamesAreProvedAnew(t *testing.T) {
	in := contract()
	one := int32(1)
	in.Applications = nil
	in.Namespaces = []*bocage.Namespace{{ObjectMeta: bocage.ObjectMeta{Name: "dev"}}}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{
		Tier: bocage.TierAdmin, Priority: &one, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{MatchLabels: map[string]string{"team": "a"}}},
		Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"example.com"}}}}}}}}
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"dev"}}, To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}}}}}
	var v future
	const towards = "(1 towards DNS names"
	if p := v.prove(in); !p.Holds || strings.Contains(p.Statement, towards) {
		t.Fatalf("%+v", p)
	}
	labelled := in
	labelled.Namespaces = []*bocage.Namespace{{ObjectMeta: bocage.ObjectMeta{Name: "dev", Labels: map[string]string{"team": "a"}}}}
	if p := v.prove(labelled); !p.Holds || !strings.Contains(p.Statement, towards) {
		t.Errorf("when the namespace is of the team: %+v", p)
	}
	wider := in
	policy := *in.ClusterNetworkPolicies[0]
	policy.Spec.Subject.Namespaces = &bocage.Selector{}
	wider.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{&policy}
	if p := v.prove(wider); !p.Holds || !strings.Contains(p.Statement, towards) {
		t.Errorf("when the policy is about all: %+v", p)
	}
	if p := v.prove(in); !p.Holds || strings.Contains(p.Statement, towards) {
		t.Errorf("as it was: %+v", p)
	}
}

// TestFutureOfManyNames proves what many names meet at many refused prefixes: what is
// alike is solved once, whatever ports it is at, and everything is looked at. Counted is
// what is the same on a busy machine.
func TestFutureOfManyNames(t *testing.T) {
	const names, prefixes = 300, 20
	in := contract()
	in.Applications = nil
	for i := range 3 { // alike but for the label
		app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("app%d", i)}, Spec: bocage.ApplicationSpec{
			Workload: bocage.Selector{MatchLabels: map[string]string{"app": fmt.Sprintf("app%d", i)}}}}
		for j := range names / 3 {
			app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{External: bocage.External{Name: bocage.DomainName(fmt.Sprintf("n%d-%d.example.com", i, j))}, Port: uint16(1000 + 2*j)})
		}
		in.Applications = append(in.Applications, app)
	}
	g := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "outside"}}
	for i := range prefixes {
		g.Spec.Never = append(g.Spec.Never, bocage.CellMatch{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", i))}}})
	}
	in.Guardrails = []*bocage.Guardrail{g}
	var proof bocage.Proof
	allocated := testing.AllocsPerRun(1, func() { proof = new(future).prove(in) })
	if want := fmt.Sprintf("in %d ways, of which %d are possible (%d towards DNS names, wherever those are)", names*prefixes, names*prefixes, names*prefixes); !proof.Holds || !strings.HasSuffix(proof.Statement, want) {
		t.Errorf("%+v", proof)
	}
	if allocated > 20*names*prefixes {
		t.Errorf("%.0f allocations for %d pairs", allocated, names*prefixes)
	}
	words, owed := vocabularyOf(in), obligations(in)
	imagining := newWitnessFinder(words, owed)
	var witnesses []witness
	for _, o := range owed {
		for _, a := range allowances(in) {
			k := imagining.kind(a)
			near, besides := imagining.near(o, k)
			w, found := imagining.flow(o, k, near, besides)
			if !found || string(w.name) != string(a.name) || w.from.labels["app"] != strings.TrimPrefix(a.by.Name, "shop/") || w.port != in.Applications[w.from.labels["app"][3]-'0'].Spec.Consumes[(w.port-1000)/2].Port {
				t.Fatalf("%s: %+v", a.by, w)
			}
			witnesses = append(witnesses, w)
		}
	}
	if solved := len(imagining.templates); solved != prefixes {
		t.Errorf("%d pairs were solved, want one for each prefix", solved)
	}
	world := newWorld(in, witnesses)
	for _, w := range witnesses {
		if _, placed := world.place(w); !placed {
			t.Fatalf("%s has no place", w.from)
		}
	}
	if workloads := len(world.in.Workloads); workloads != 3*prefixes {
		t.Errorf("%d workloads are imagined, want one for each application and prefix", workloads)
	}
	in.Guardrails = nil
	for _, w := range []witness{witnesses[0], witnesses[len(witnesses)-1]} {
		if counter := refute(in, []witness{w}); !strings.Contains(counter, " as "+string(w.name)+" ") {
			t.Errorf("without the guardrail the counterexample is %q", counter)
		}
	}
}
