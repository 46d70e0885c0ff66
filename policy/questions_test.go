package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/explain"
)

// TestExplainWhatWas asks under a generation that is over, for a recorded event,
// and for a moment to come.
func TestExplainWhatWas(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, p := b.startShop()
		q := bocage.ExplainQuery{From: "shop/web", To: "shop/api", Port: 8080, Protocol: bocage.ProtocolTCP}
		was, err := p.Explain(b.ctx, q)
		if err != nil || was.Verdict != bocage.VerdictAllow || was.Generation != 1 {
			t.Fatalf("at first: %+v, %v", was, err)
		}
		s.apiApp.Spec.Provides[0].Port = 8090
		b.declare(s.apiApp)
		b.settle()
		explainAs := func(generation uint64, decision bocage.DecisionID) bocage.Explanation {
			t.Helper()
			asked := q
			asked.Generation, asked.Decision = generation, decision
			e, err := p.Explain(b.ctx, asked)
			if err != nil {
				t.Fatalf("generation %d, decision %s: %v", generation, decision, err)
			}
			return e
		}
		// That a store does not answer does not mean that a generation is not kept.
		gone, cancel := context.WithCancel(b.ctx)
		cancel()
		early := q
		early.Generation, early.Decision = 1, was.Reason.Decision
		if e, err := p.Explain(gone, early); !errors.Is(err, context.Canceled) {
			t.Errorf("for somebody who has left: %+v, %v", e, err)
		}
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictDrop || e.Generation != 2 {
			t.Errorf("now: %s under generation %d", e.Verdict, e.Generation)
		}
		if e := explainAs(1, 0); e.Verdict != bocage.VerdictAllow || e.Generation != 1 || e.Decider != was.Decider {
			t.Errorf("under generation 1: %s under %d by %s", e.Verdict, e.Generation, e.Decider)
		}
		// The event of then, told by what is kept of its generation.
		if e := explainAs(1, was.Reason.Decision); e.Verdict != bocage.VerdictAllow || e.Decider != was.Decider || layer(e, "recorded") != "" {
			t.Errorf("the event: %s by %s, %q", e.Verdict, e.Decider, layer(e, "recorded"))
		}
		// And by what is in force, where its generation is not known.
		if e := explainAs(0, was.Reason.Decision); e.Verdict != bocage.VerdictAllow || e.Decider != was.Decider || !strings.Contains(layer(e, "recorded"), "decided by "+was.Reason.Decision.String()) {
			t.Errorf("the event without generation: %s by %s, %q", e.Verdict, e.Decider, layer(e, "recorded"))
		}
		if e := explainAs(77, was.Reason.Decision); e.Generation != 77 || e.Decider != was.Decider || !strings.Contains(layer(e, "recorded"), "generation 77 is not kept") {
			t.Errorf("the event of a generation that is not kept: %q", layer(e, "recorded"))
		}
		for _, bad := range []bocage.ExplainQuery{{Generation: 77}, {Decision: 12345}} {
			bad.From, bad.To, bad.Port = q.From, q.To, q.Port
			if _, err := p.Explain(b.ctx, bad); err == nil {
				t.Errorf("%+v is answered", bad)
			}
		}

		// In an hour the quarantine is over, and says so today.
		b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"},
			Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: time.Now().Add(time.Hour)}})
		b.settle()
		q.Port = 8090
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictDrop || e.Reason.Code != bocage.ReasonQuarantine {
			t.Errorf("in quarantine: %s (%s)", e.Verdict, e.Reason.Code)
		}
		q.At = time.Now().Add(2 * time.Hour)
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictAllow || layer(e, explain.LayerQuarantine) != "neither end is cut off" || layer(e, explain.LayerCheck) != "" {
			t.Errorf("in two hours: %s, %v", e.Verdict, e.Layers)
		}
	})
}

// TestExplainNames asks about a name, about an address by a name, and for a recorded flow
// that a name opened.
func TestExplainNames(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{External: bocage.External{Name: "*.example.com"}, Port: 443})
		s.guardrail.Spec.Match = bocage.CellMatch{}
		s.guardrail.Spec.Never = []bocage.CellMatch{{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}}
		b.declare(s.all()...)
		one := int32(1)
		b.declare(&bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{
			Tier: bocage.TierAdmin, Priority: &one, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
			Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"cloud.example"}}}},
				{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"b.example.net", "a.example.net"}}}}}}})
		p := b.start()
		b.settle()
		const byName = "Application shop/web spec.consumes[1] (shop.yaml:web)"
		named := bocage.DecisionID(0)
		for _, test := range []struct {
			to, name string
			verdict  bocage.Verdict
			decider  string
			known    bocage.DomainName // by which it is explained
			others   []string          // of elsewhere
		}{
			{"api.example.com", "", bocage.VerdictAllow, byName, "api.example.com", []string{" Default deny", "198.51.100.0/24 Guardrail pci spec.never[0]"}},
			{"API.Example.com.", "", bocage.VerdictAllow, byName, "api.example.com", []string{" Default deny", "198.51.100.0/24 Guardrail pci spec.never[0]"}},
			{"example.com", "", bocage.VerdictDrop, "Default deny", "example.com", []string{"198.51.100.0/24 Guardrail pci spec.never[0]"}},
			{"203.0.113.5", "api.example.com", bocage.VerdictAllow, byName, "api.example.com", []string{" Default deny"}},
			{"198.51.100.5", "api.example.com", bocage.VerdictDrop, "Guardrail pci spec.never[0]", "api.example.com", nil},
			{"203.0.113.5", "", bocage.VerdictDrop, "Default deny", "", nil},
			{"shop/db", "api.example.com", bocage.VerdictDrop, "Default deny", "api.example.com", nil},
		} {
			e, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/web", To: test.to, Name: test.name, Port: 443, Protocol: bocage.ProtocolTCP})
			if err != nil {
				t.Fatalf("%+v: %v", test, err)
			}
			var others []string
			for _, o := range e.Elsewhere {
				others = append(others, strings.Trim(fmt.Sprint(o.Addresses), "[]")+" "+o.Decider.String())
			}
			if e.Verdict != test.verdict || e.Decider.String() != test.decider || e.Name != test.known || !slices.Equal(others, test.others) || layer(e, explain.LayerCheck) != "" {
				t.Errorf("%s as %q: %s by %s as %q, elsewhere %q; %v", test.to, test.name, e.Verdict, e.Decider, e.Name, others, e.Layers)
			}
			if e.Verdict.Allowed() {
				named = e.Reason.Decision
			}
		}
		// Nobody keeps by which name a recorded flow went: its decision tells the pattern.
		e, err := p.Explain(b.ctx, bocage.ExplainQuery{From: webIP, To: "203.0.113.5", Port: 443, Protocol: bocage.ProtocolTCP, Generation: 1, Decision: named})
		if err != nil || !e.Verdict.Allowed() || e.Name != "*.example.com" || e.Decider.String() != byName || layer(e, "recorded") != "" {
			t.Errorf("recorded: %s by %s as %q, %q, %v", e.Verdict, e.Decider, e.Name, layer(e, "recorded"), err)
		}
		// Likewise of a rule that names no protocol.
		accepted, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/db", To: "cloud.example", Port: 53, Protocol: bocage.ProtocolUDP})
		if err != nil || !accepted.Verdict.Allowed() {
			t.Fatalf("accepted: %+v, %v", accepted, err)
		}
		e, err = p.Explain(b.ctx, bocage.ExplainQuery{From: dbIP, To: "203.0.113.5", Port: 53, Protocol: bocage.ProtocolUDP, Generation: 1, Decision: accepted.Reason.Decision})
		if err != nil || e.Name != "cloud.example" || e.Reason.Decision != accepted.Reason.Decision {
			t.Errorf("recorded, by a rule of a ClusterNetworkPolicy: %s by %s as %q, %v", e.Verdict, e.Decider, e.Name, err)
		}
		// One rule may accept several names: then nobody knows which it was.
		both, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/db", To: "b.example.net", Port: 53, Protocol: bocage.ProtocolUDP})
		if err != nil || !both.Verdict.Allowed() {
			t.Fatalf("accepted: %+v, %v", both, err)
		}
		e, err = p.Explain(b.ctx, bocage.ExplainQuery{From: dbIP, To: "203.0.113.5", Port: 53, Protocol: bocage.ProtocolUDP, Generation: 1, Decision: both.Reason.Decision})
		if said := layer(e, "recorded"); err != nil || e.Name != "" || !e.Verdict.Allowed() || e.Reason.Decision != both.Reason.Decision || e.Decider != both.Decider ||
			!strings.Contains(said, "a.example.net, b.example.net") || strings.Contains(said, "inventory") {
			t.Errorf("recorded, by a rule of two names: %s by %s as %q, %q, %v", e.Verdict, e.Decider, e.Name, said, err)
		}
		for _, test := range [][3]string{{"*.example.com", "", "is a pattern of names"}, {"203.0.113.5", "*.example.com", "is a pattern of names"},
			{"api.example.com", "example.com", "needs no other"}, {"nobody", "", "neither an address nor a workload"}, {"203.0.113.5", "nobody", "name:"}} {
			if e, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/web", To: test[0], Name: test[1], Port: 443, Protocol: bocage.ProtocolTCP}); err == nil || !strings.Contains(err.Error(), test[2]) {
				t.Errorf("%q: %+v, %v", test, e, err)
			} else if faults := (bocage.Faults)(nil); !errors.As(err, &faults) || faults[0].Field == "" {
				t.Errorf("%q: %v is not told as the fault of who asks", test, err)
			}
		}
	})
}

// TestExplainByASlowerClock asks a controller about a generation that it compiled for a
// moment of another's, ahead of its own clock: the answer is what is compiled already.
func TestExplainByASlowerClock(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.declare(newShop().all()...)
		p := b.start()
		b.settle()
		p.now = func() time.Time { return p.inForce().input.Now.Add(-9 * time.Second) }
		q := bocage.ExplainQuery{From: "shop/web", To: "shop/api", Port: 8080, Protocol: bocage.ProtocolTCP}
		e, err := p.Explain(b.ctx, q)
		if made := p.inForce().input.Now; err != nil || !e.Verdict.Allowed() || !e.Flow.At.Equal(made) {
			t.Errorf("%s at %s of what was made at %s, %v", e.Verdict, e.Flow.At, made, err)
		}
		q.At = p.now() // who names a moment is told of that
		if e, err := p.Explain(b.ctx, q); err != nil || !e.Flow.At.Equal(q.At) {
			t.Errorf("of %s it is explained at %s, %v", q.At, e.Flow.At, err)
		}
	})
}

func layer(e bocage.Explanation, name string) string {
	for _, l := range e.Layers {
		if l.Name == name {
			return l.Result
		}
	}
	return ""
}
