package policy

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// TestUsage counts each flow once, whoever counts, and across restarts.
func TestUsage(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		type span struct{ since, until time.Time }
		var mu sync.Mutex // guards asked: two rooms count
		var asked []span
		b.before = func(p *Policy) {
			p.usage = func(_ context.Context, since, until time.Time) ([]DecisionUse, error) {
				mu.Lock()
				asked = append(asked, span{since, until})
				mu.Unlock()
				o := p.inForce()
				var uses []DecisionUse
				for _, flow := range []bocage.Flow{flowOf(webIP, apiIP, 8080), flowOf(webIP, dbIP, 5432)} {
					_, reason := o.output.Ruleset().Decide(flow)
					uses = append(uses, DecisionUse{Decision: reason.Decision, Generation: uint32(o.number), Hits: 3, First: until.Add(-time.Second), Last: until})
				}
				return append(uses, DecisionUse{Decision: 4711, Generation: 99, Hits: 1}), nil
			}
		}
		b.start()
		b.start()
		b.settle()
		b.wait(3*usageEvery + time.Second)
		mu.Lock()
		slices.SortFunc(asked, func(x, y span) int { return x.until.Compare(y.until) })
		counted := int64(0)
		for i, a := range asked {
			if i > 0 && a.since.Before(asked[i-1].until) && !a.since.Equal(asked[i-1].since) {
				t.Errorf("%v and %v overlap", asked[i-1], a)
			}
			if i == 0 || !a.since.Equal(asked[i-1].since) {
				counted++
			}
		}
		mu.Unlock()
		app := get[*bocage.Application](b, "shop", "api")
		if len(app.Status.Usage) != 1 || app.Status.Usage[0].Field != "spec.provides[0]" || app.Status.Usage[0].Hits != 3*counted || app.Status.Usage[0].FirstSeen.IsZero() {
			t.Errorf("usage of the provider after %d counts: %+v", counted, app.Status.Usage)
		}
		if web := get[*bocage.Application](b, "shop", "web"); len(web.Status.Usage) != 1 || web.Status.Usage[0].Field != "spec.consumes[0]" {
			t.Errorf("usage of the consumer: %+v", web.Status.Usage)
		}
		if g := get[*bocage.Guardrail](b, "", "pci"); len(g.Status.Usage) != 1 || g.Status.Usage[0].Field != "spec.never[0]" {
			t.Errorf("usage of the guardrail: %+v", g.Status.Usage)
		}
		before := app.Status.Usage[0]
		b.again()
		b.wait(2 * usageEvery)
		after := get[*bocage.Application](b, "shop", "api").Status.Usage[0]
		if after.Hits <= before.Hits || !after.FirstSeen.Equal(before.FirstSeen) || !after.LastSeen.After(before.LastSeen) {
			t.Errorf("after a restart: %+v, before %+v", after, before)
		}
	})
}

// TestBlockingTest keeps back what breaks a PolicyTest that blocks, and only
// reports what breaks one that does not.
func TestBlockingTest(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		test := &bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web-needs-api"}, Spec: bocage.PolicyTestSpec{Blocks: true, Cases: []bocage.PolicyTestCase{
			{Name: "http", From: "shop/web", To: "shop/api", Port: 8080, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}, Because: "customers"}}}}
		b.declare(test)
		b.start()
		b.start()
		b.settle()
		b.wantActive("g1")
		b.condition(get[*bocage.PolicyTest](b, "shop", "web-needs-api").Status.Conditions, bocage.ConditionReady, "True", "Passed")
		s.apiApp.Spec.Provides[0].Port = 9000
		b.declare(s.apiApp)
		b.settle()
		b.wantActive("g1")
		if g := get[*bocage.Generation](b, "", "g2"); g.Status.Stage != bocage.StageBlocked || !strings.Contains(g.Status.Conditions[0].Message, "customers") {
			t.Errorf("the generation that breaks it: %+v", g.Status)
		}
		b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", "Blocked")
		c := b.condition(get[*bocage.PolicyTest](b, "shop", "web-needs-api").Status.Conditions, bocage.ConditionReady, "True", "Passed")
		if !strings.Contains(c.Message, "kept back") || strings.Count(c.Message, "decided by") != 1 {
			t.Errorf("the test does not say what it keeps back: %s", c.Message)
		}
		b.again()
		b.wantActive("g1")
		// The inventory goes on meanwhile.
		more := *s.web
		more.Name, more.Spec.Interface, more.Status.Identity = "web2", "veth-web2", s.web.Status.Identity+9
		more.Spec.Addresses = slices.Clone(s.web.Spec.Addresses)
		more.Spec.Addresses[0] = more.Spec.Addresses[0].Next().Next().Next()
		b.declare(&more)
		b.settle()
		if v, _ := b.decide(more.Spec.Addresses[0].String(), apiIP, 8080, "h1", "h2"); !v.Allowed() {
			t.Errorf("a new workload waits for a blocked declaration: %s", v)
		}
		fresh := get[*bocage.PolicyTest](b, "shop", "web-needs-api")
		fresh.Spec.Blocks = false
		b.declare(fresh)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 9000, "h1", "h2"); !v.Allowed() {
			t.Errorf("a test that does not block blocks: %s", v)
		}
		failed := get[*bocage.PolicyTest](b, "shop", "web-needs-api")
		b.condition(failed.Status.Conditions, bocage.ConditionReady, "False", "Failed")
		if !slices.Equal(failed.Status.Failed, []string{"http"}) {
			t.Errorf("failed: %v", failed.Status.Failed)
		}
		results, err := b.rooms[0].Test(b.ctx, nil)
		if err != nil || len(results) != 1 || results[0].Passed {
			t.Errorf("asked for: %+v, %v", results, err)
		}
		if m, err := b.rooms[0].Matrix(b.ctx, nil); err != nil || len(m.Workloads) != 4 {
			t.Errorf("matrix: %+v, %v", m, err)
		}
		if r, err := b.rooms[0].Blast(b.ctx, bocage.BlastQuery{From: "shop/web"}); err != nil || r.Total != 4 || len(r.Reached) == 0 {
			t.Errorf("blast radius: %+v, %v", r, err)
		}
	})
}

// TestBlockingIsOfRegressions lets through what a PolicyTest says that fails already, or
// that is decided by those who stand above owners: whoever may write a test would
// hold up everybody, or keep corporate policy out. What fails all the same is told.
func TestBlockingIsOfRegressions(t *testing.T) {
	policyTest := func(name, to string, port uint16) *bocage.PolicyTest {
		return &bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name}, Spec: bocage.PolicyTestSpec{Blocks: true, Cases: []bocage.PolicyTestCase{
			{From: "shop/web", To: to, Port: port, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}}}}}
	}
	twins := policyTest("twins", "shop/api", 8080)
	twins.Spec.Cases = append(policyTest("", "shop/db", 1).Spec.Cases, twins.Spec.Cases...)
	for i := range twins.Spec.Cases {
		twins.Spec.Cases[i].Name = "of one name"
	}
	many := policyTest("many", "", 8080)
	many.Spec.Cases[0].From, many.Spec.Cases[0].FromAll = "", &bocage.Side{Namespaces: []string{"shop"}}
	many.Spec.Cases[0].To = "shop/api"
	web := bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: "web"}}}
	api := bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: "api"}}}
	corporate := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "corporate"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: web, To: api}}}}
	one := int32(1)
	admin := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "corporate"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &one,
		Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
		Ingress: []bocage.ClusterNetworkPolicyIngressRule{{Action: bocage.ActionDeny, From: []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: &bocage.Selector{}}}}}}}
	for _, test := range []struct {
		name   string
		test   *bocage.PolicyTest
		change bocage.Resource
		kept   bool // back
		tells  string
	}{
		{"it fails already", policyTest("nonsense", "shop/db", 1), corporate, false, "PolicyTest shop/nonsense failed"},
		{"a guardrail decides", policyTest("web-needs-api", "shop/api", 8080), corporate, false, "decided by Guardrail corporate spec.never[0], which no PolicyTest keeps out"},
		{"an administrator's policy decides", policyTest("web-needs-api", "shop/api", 8080), admin, false, "decided by ClusterNetworkPolicy corporate spec.ingress[0]"},
		{"an owner takes back his contract", policyTest("web-needs-api", "shop/api", 8080), nil, true, ""},
		{"an owner takes back his contract, and a case of the same name fails already", twins, nil, true, ""},
		{"an owner takes back his contract, and another flow of the case fails already", many, nil, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s, _ := b.startShop()
				b.wantActive("g1")
				b.declare(test.test) // a generation is in force by now
				b.settle()
				if change := test.change; change == nil {
					s.apiApp.Spec.Provides[0].Port = 9000
					b.declare(s.apiApp)
				} else {
					b.declare(change)
				}
				b.settle()
				g := get[*bocage.Generation](b, "", "g2")
				if g.Status.Active == test.kept || (g.Status.Stage == bocage.StageBlocked) != test.kept {
					t.Fatalf("in force: %v, stage %s: %+v", g.Status.Active, g.Status.Stage, g.Status.Conditions)
				}
				if test.kept {
					return
				}
				if c := b.condition(g.Status.Conditions, bocage.ConditionTested, "False", "FailedAllTheSame"); !strings.Contains(c.Message, test.tells) {
					t.Errorf("the generation tells %q, which lacks %q", c.Message, test.tells)
				}
				b.condition(g.Status.Conditions, bocage.ConditionProved, "True", "Proved")
				b.condition(get[*bocage.PolicyTest](b, "shop", test.test.Name).Status.Conditions, bocage.ConditionReady, "False", "Failed")
				// Another controller, which knows nothing of the generation before, holds nothing up.
				b.again()
				b.wantActive("g2")
			})
		})
	}
}

// TestResultText names who decided once, with the field.
func TestResultText(t *testing.T) {
	text := resultText(bocage.TestResult{Case: "http", Flow: "a -> b TCP/80", Want: "allow", Got: "refuse (guardrail), decided by Guardrail pci",
		By: bocage.Ref{Kind: "Guardrail", Name: "pci", Field: "spec.never[0]"}, Because: "customers"})
	if want := "http: a -> b TCP/80: want allow, got refuse (guardrail), decided by Guardrail pci spec.never[0] (customers)"; text != want {
		t.Errorf("%s, want %s", text, want)
	}
}

// TestNotices counts repetitions in one event and forgets it in time.
func TestNotices(t *testing.T) {
	inBubble(t, func(b *bench) {
		p := b.start()
		for range 3 {
			p.notices.tell("Generation", "", "g7", "Blocked", "a proof failed", true)
		}
		b.settle()
		p.notices.tell("Generation", "", "g7", "Blocked", "a proof failed again", true)
		p.notices.tell("Application", "shop", "web", "Blocked", "of another", true)
		b.settle()
		events := b.events()
		i := slices.IndexFunc(events, func(e *bocage.ObjectEvent) bool { return e.InvolvedObject.Name == "g7" })
		if len(events) != 2 || events[i].Count != 4 || events[i].Message != "a proof failed again" || events[i].Namespace != defaultNamespace || events[i].APIVersion != bocage.ObjectEventAPIVersion {
			t.Fatalf("events: %+v", events)
		}
		// describe asks for an object's events by its UID; another object of the same
		// name is another.
		q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q", UID: "one"}, Spec: bocage.QuarantineSpec{Workload: "shop/nobody"}}
		about := func(count int32) {
			t.Helper()
			b.declare(q)
			b.settle()
			p.notices.tell("Quarantine", "", "q", "Seen", "by night", false)
			b.settle()
			for _, e := range b.events() {
				if e.Reason == "Seen" && (e.InvolvedObject.UID != q.UID || e.Count != count) {
					t.Errorf("about %s: %d of %+v", q.UID, e.Count, e.InvolvedObject)
				}
			}
		}
		about(1)
		about(2)
		q.UID = "two"
		about(1)
		p.notices.tell("Quarantine", "", "q", "Told", strings.Repeat("ü", noticeText), false)
		b.settle()
		for _, e := range b.events() {
			if !utf8.ValidString(e.Message) {
				t.Errorf("%s is cut within a letter", e.Reason)
			}
		}
		idle := newNoticeBoard(b.store, "", slog.New(slog.DiscardHandler)) // nobody writes what it is told
		for n := range 2 * noticesWaiting {
			idle.tell("Generation", "", generationName(uint64(n)), "Blocked", "many", true)
		}
		if shed := idle.shed.Load(); shed != noticesWaiting || len(idle.waiting) != noticesWaiting {
			t.Errorf("%d wait and %d are shed", len(idle.waiting), shed)
		}
		b.wait(noticeLife + 2*noticeTidy)
		if left := b.events(); len(left) > 0 {
			t.Errorf("%d events are never forgotten", len(left))
		}
	})
}

// TestExceptionEnds opens what a guardrail refuses for a while: its end comes by
// itself, in what hosts have as well, and people are told.
// TestUsageIsKept across a controller's change of name, and of what versions before
// kept under its name or for all; what cannot be read keeps nobody from counting.
func TestUsageIsKept(t *testing.T) {
	book := func(hits int64) []byte {
		return []byte(fmt.Sprintf(`{"until":"1999-12-31T23:50:00Z","uses":[{"kind":"Application","namespace":"shop","name":"api","field":"spec.provides[0]","hits":%d}]}`, hits))
	}
	for _, c := range []struct {
		name      string
		kept      map[string]int64 // hits by key; 0 is what cannot be read
		was, all  int64
		afterward []string
	}{
		{"nothing", nil, 0, 0, []string{"mark"}},
		{"its own, and others", map[string]int64{"mark": 5, "other": 7}, 5, 12, []string{"mark", "other"}},
		{"of its name", map[string]int64{"c1": 5, "other": 7}, 5, 12, []string{"mark", "other"}},
		{"of its name, and its own", map[string]int64{"c1": 5, "mark": 7}, 7, 12, []string{"c1", "mark"}},
		{"of all", map[string]int64{"": 5, "other": 7}, 5, 12, []string{"mark", "other"}},
		{"of all, and of its name", map[string]int64{"": 5, "c1": 7}, 7, 12, []string{"", "mark"}},
		{"one that cannot be read", map[string]int64{"other": 0, "third": 3, "mark": 4}, 4, 7, []string{"mark", "other", "third"}},
		{"its own cannot be read", map[string]int64{"mark": 0, "third": 3, "c1": 4}, 0, 7, []string{"c1", "mark", "third"}},
		{"of its name cannot be read", map[string]int64{"c1": 0, "": 4}, 4, 4, []string{"c1", "mark"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				b.declare(newShop().all()...)
				key := func(name string) string { return strings.TrimSuffix(usageKey+"/"+name, "/") }
				for name, hits := range c.kept {
					value, err := compress(book(hits))
					if err != nil {
						t.Fatal(err)
					}
					if hits == 0 {
						value = []byte("of a version to come")
					}
					if _, err := store.Put(b.ctx, b.store, key(name), value, store.Absent); err != nil {
						t.Fatal(err)
					}
				}
				asked := make(chan time.Time, 100)
				b.before = func(p *Policy) {
					p.node, p.instance = "c1", "mark"
					p.usage = func(_ context.Context, since, until time.Time) ([]DecisionUse, error) {
						asked <- since
						_, reason := p.inForce().output.Ruleset().Decide(flowOf(webIP, apiIP, 8080))
						return []DecisionUse{{Decision: reason.Decision, Generation: uint32(p.inForce().number), Hits: 100, First: since, Last: until}}, nil
					}
				}
				b.start()
				b.settle()
				b.wait(usageEvery + time.Second)
				counts := int64(len(asked))
				if counts == 0 {
					t.Fatal("nothing is counted")
				}
				if since := <-asked; since.IsZero() != (c.was == 0) {
					t.Errorf("counts from %s on", since)
				}
				if u := get[*bocage.Application](b, "shop", "api").Status.Usage; len(u) != 1 || u[0].Hits != c.all+100*counts {
					t.Errorf("usage after %d counts: %+v, want %d and the counts", counts, u, c.all)
				}
				entries, _, err := b.store.List(b.ctx, usageKey, "", 0, 0)
				if err != nil {
					t.Fatal(err)
				}
				var left []string
				for _, e := range entries {
					left = append(left, strings.TrimPrefix(strings.TrimPrefix(e.Key, usageKey), "/"))
				}
				if !slices.Equal(left, c.afterward) {
					t.Errorf("left are %q, want %q", left, c.afterward)
				}
			})
		})
	}
}

// TestExceptionUsage sees what an exception lets through counted for it.
func TestExceptionUsage(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{Service: "db"})
		s.dbApp.Spec.Provides[0].To = bocage.Selector{}
		s.guardrail.Spec.Exceptions = bocage.ExceptionTerms{Allowed: true, Max: "24h"}
		b.declare(s.all()...)
		b.declare(&bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "migration"}, Spec: bocage.ExceptionSpec{Guardrail: "pci",
			Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}}, From: time.Now(), Until: time.Now().Add(20 * time.Hour)}})
		b.before = func(p *Policy) {
			p.usage = func(_ context.Context, since, until time.Time) ([]DecisionUse, error) {
				o := p.inForce()
				_, reason := o.output.Ruleset().Decide(flowOf(webIP, dbIP, 5432))
				return []DecisionUse{{Decision: reason.Decision, Generation: uint32(o.number), Hits: 3, First: until.Add(-time.Second), Last: until}}, nil
			}
		}
		b.start()
		b.settle()
		b.wait(3*usageEvery + time.Second)
		e := get[*bocage.Exception](b, "", "migration")
		if u := e.Status.Usage; len(u) != 1 || u[0].Field != "spec.match" || u[0].Hits < 3 || u[0].FirstSeen.IsZero() || u[0].LastSeen.IsZero() {
			t.Errorf("usage of the exception: %+v", u)
		}
	})
}

func TestExceptionEnds(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{Service: "db"})
		s.dbApp.Spec.Provides[0].To = bocage.Selector{}
		s.guardrail.Spec.Exceptions = bocage.ExceptionTerms{Allowed: true, Max: "1h"}
		b.declare(s.all()...)
		b.start()
		b.start()
		b.settle()
		if v, c := b.decide(webIP, dbIP, 5432, "h1", "h2"); v.Allowed() || c != bocage.ReasonGuardrail {
			t.Fatalf("without an exception: %s %s", v, c)
		}
		begins := time.Now()
		b.declare(&bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "migration"}, Spec: bocage.ExceptionSpec{Guardrail: "pci",
			Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}}, From: begins, Until: begins.Add(time.Minute), Ticket: "CHG-1"}})
		b.settle()
		kept := b.ruleset("h2")
		if v, _ := b.decide(webIP, dbIP, 5432, "h1", "h2"); !v.Allowed() {
			t.Fatalf("with an exception: %s", v)
		}
		later := flowOf(webIP, dbIP, 5432)
		later.At = begins.Add(61 * time.Second)
		if v, _ := kept.Decide(later); v.Allowed() {
			t.Error("what a host has does not end by itself")
		}
		b.wait(time.Minute)
		if v, c := b.decide(webIP, dbIP, 5432, "h1", "h2"); v.Allowed() || c != bocage.ReasonGuardrail {
			t.Errorf("after its end: %s %s", v, c)
		}
		b.condition(get[*bocage.Exception](b, "", "migration").Status.Conditions, bocage.ConditionCompiled, "False", compile.Expired)
		b.wait(time.Second)
		if !slices.ContainsFunc(b.events(), func(e *bocage.ObjectEvent) bool { return e.Reason == "Ended" && e.InvolvedObject.Name == "migration" }) {
			t.Errorf("nobody is told: %+v", b.events())
		}
	})
}
