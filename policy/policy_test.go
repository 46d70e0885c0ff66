package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// bench is a store with one or more policy rooms on it, in a bubble of its own.
type bench struct {
	t       *testing.T
	ctx     context.Context
	store   store.Store
	rooms   []*Policy
	cancels []context.CancelFunc
	done    sync.WaitGroup
	notices atomic.Uint64 // the last generation that agents were told of
	before  func(*Policy) // changes a room before it runs
	// stopping are closed when the rooms are to stop.
	stopping []chan struct{}
}

func inBubble(t *testing.T, run func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, ctx: t.Context(), store: mem.New()}
		defer func() {
			b.stop()
			b.store.Close()
			synctest.Wait()
		}()
		run(b)
	})
}

// start runs another room.
func (b *bench) start() *Policy {
	b.t.Helper()
	p, err := New(Config{
		Store: b.store,
		Sign: func(kind string, payload []byte) ([]byte, error) {
			return append([]byte(kind+":"), payload...), nil
		},
		Notify: b.notices.Store,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if b.before != nil {
		b.before(p)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	b.rooms, b.cancels = append(b.rooms, p), append(b.cancels, cancel)
	b.done.Go(func() {
		if err := p.Run(ctx); err != nil {
			b.t.Errorf("run: %v", err)
		}
	})
	return p
}

// startShop declares a shop, runs a room and lets it bring the shop into force.
func (b *bench) startShop() (*shop, *Policy) {
	b.t.Helper()
	s := newShop()
	b.declare(s.all()...)
	p := b.start()
	b.settle()
	return s, p
}

func (b *bench) stop() {
	for _, cancel := range b.cancels {
		cancel()
	}
	for _, stop := range b.stopping {
		close(stop)
	}
	b.stopping = nil
	b.done.Wait()
	b.rooms, b.cancels = nil, nil
}

// settle lets everything that follows from what happened happen.
func (b *bench) settle() {
	synctest.Wait()
	time.Sleep(settleMost) // virtual: the bubble's clock moves when nobody can
	synctest.Wait()
}

func kindOfObject(o bocage.Resource) bocage.Kind {
	for _, k := range bocage.Kinds() {
		if fmt.Sprintf("%T", k.New()) == fmt.Sprintf("%T", o) {
			return k
		}
	}
	panic("no kind")
}

// declare writes objects as the api room would.
func (b *bench) declare(objects ...bocage.Resource) {
	b.t.Helper()
	for _, o := range objects {
		kind := kindOfObject(o)
		o.Meta().Generation++
		if _, err := store.PutObject(b.ctx, b.store, kind, o, store.AnyRevision); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) remove(o bocage.Resource) {
	b.t.Helper()
	if _, err := store.Delete(b.ctx, b.store, kindOfObject(o).Key(o.Meta().Namespace, o.Meta().Name), store.AnyRevision); err != nil {
		b.t.Fatal(err)
	}
}

func get[T bocage.Resource](b *bench, namespace, name string) T {
	b.t.Helper()
	var zero T
	object, _, err := store.Object(b.ctx, b.store, kindOfObject(zero), namespace, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return object.(T)
}

func (b *bench) ruleset(host string) *bocage.Ruleset {
	b.t.Helper()
	answer := b.ask(host, Question{})
	if len(answer.Ruleset) == 0 {
		b.t.Fatalf("%s has no ruleset", host)
	}
	return b.open(host, bocage.SignedRuleset, answer.Ruleset)
}

// ask asks every room, which must say the same.
func (b *bench) ask(host string, q Question) Answer {
	b.t.Helper()
	var first Answer
	for i, p := range b.rooms {
		answer, err := p.Answer(b.ctx, host, q)
		if err != nil {
			b.t.Fatal(err)
		}
		if i == 0 {
			first = answer
		} else if !reflect.DeepEqual(answer, first) {
			b.t.Fatalf("%s gets another answer from room %d", host, i)
		}
	}
	return first
}

func (b *bench) open(host, kind string, envelope []byte) *bocage.Ruleset {
	b.t.Helper()
	payload, ok := strings.CutPrefix(string(envelope), kind+":")
	if !ok {
		b.t.Fatalf("what %s gets is not signed as %s", host, kind)
	}
	rs, err := DecodeRuleset([]byte(payload))
	if err != nil {
		b.t.Fatal(err)
	}
	if rs.Host != host {
		b.t.Fatalf("the ruleset of %s is cut for %q", host, rs.Host)
	}
	return rs
}

func (b *bench) generations() (all map[string]*bocage.Generation, active []string) {
	b.t.Helper()
	objects, _, err := store.Objects(b.ctx, b.store, generationKind())
	if err != nil {
		b.t.Fatal(err)
	}
	all = map[string]*bocage.Generation{}
	for _, o := range objects {
		g := o.(*bocage.Generation)
		all[g.Name] = g
		if g.Status.Active {
			active = append(active, g.Name)
		}
	}
	return all, active
}

func (b *bench) wantActive(name string) {
	b.t.Helper()
	if _, active := b.generations(); len(active) != 1 || active[0] != name {
		b.t.Fatalf("active: %v, want %s", active, name)
	}
}

func (b *bench) condition(conditions []bocage.Condition, kind, status, reason string) bocage.Condition {
	b.t.Helper()
	for _, c := range conditions {
		if c.Type == kind {
			if c.Status != status || c.Reason != reason {
				b.t.Fatalf("%s is %s (%s: %s), want %s (%s)", kind, c.Status, c.Reason, c.Message, status, reason)
			}
			return c
		}
	}
	b.t.Fatalf("no condition %s in %v", kind, conditions)
	return bocage.Condition{}
}

// agents report that hosts have taken a generation.
func (b *bench) taken(generation uint64, hosts ...string) {
	b.t.Helper()
	for _, host := range hosts {
		if _, err := store.PutObject(b.ctx, b.store, kindOfObject(new(bocage.Host)), &bocage.Host{
			ObjectMeta: bocage.ObjectMeta{Name: host, Generation: 1},
			Status:     bocage.HostStatus{Generation: generation, LastSeen: time.Now()}}, store.AnyRevision); err != nil {
			b.t.Fatal(err)
		}
	}
}

// decide asks the rulesets of all named hosts, which must agree.
func (b *bench) decide(source, destination string, port uint16, hosts ...string) (bocage.Verdict, bocage.ReasonCode) {
	b.t.Helper()
	f := flowOf(source, destination, port)
	verdict, reason := b.ruleset(hosts[0]).Decide(f)
	for _, host := range hosts[1:] {
		if v, r := b.ruleset(host).Decide(f); v != verdict || r != reason {
			b.t.Fatalf("%s: %s says %s %v, %s says %s %v", f, hosts[0], verdict, reason, host, v, r)
		}
	}
	return verdict, reason.Code
}

// flowOf is a TCP flow now.
func flowOf(source, destination string, port uint16) bocage.Flow {
	return bocage.Flow{Source: netip.MustParseAddr(source), Destination: netip.MustParseAddr(destination),
		DestinationPort: port, Protocol: bocage.ProtocolTCP, At: time.Now()}
}

// confirmed reads a confirmation.
func (b *bench) confirmed(envelope []byte) uint64 {
	b.t.Helper()
	payload, ok := strings.CutPrefix(string(envelope), bocage.SignedConfirm+":")
	var c bocage.Confirmation
	if err := json.Unmarshal([]byte(payload), &c); err != nil || !ok {
		b.t.Fatalf("%q is no confirmation: %v", envelope, err)
	}
	return c.Generation
}

// events lists what people were told.
func (b *bench) events() []*bocage.ObjectEvent {
	b.t.Helper()
	objects, _, err := store.Objects(b.ctx, b.store, eventKind())
	if err != nil {
		b.t.Fatal(err)
	}
	var out []*bocage.ObjectEvent
	for _, o := range objects {
		out = append(out, o.(*bocage.ObjectEvent))
	}
	return out
}

// shop is a small site on two hosts: web on h1, api and db on h2.
type shop struct {
	web, api, db          *bocage.Workload
	webApp, apiApp, dbApp *bocage.Application
	guardrail             *bocage.Guardrail
	scope                 *bocage.Scope
}

const webIP, apiIP, dbIP = "10.0.0.1", "10.0.0.2", "10.0.0.3"

func newShop() *shop {
	workload := func(i int, name, host, ip string) *bocage.Workload {
		return &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}},
			Spec:       bocage.WorkloadSpec{Host: host, Interface: "veth-" + name, Addresses: []netip.Addr{netip.MustParseAddr(ip)}},
			Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		}
	}
	app := func(name string, spec bocage.ApplicationSpec) *bocage.Application {
		spec.Workload = bocage.Selector{MatchLabels: map[string]string{"app": name}}
		return &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name,
			Annotations: map[string]string{bocage.SourceAnnotation: "shop.yaml:" + name}}, Spec: spec}
	}
	to := func(name string) bocage.Selector { return bocage.Selector{MatchLabels: map[string]string{"app": name}} }
	return &shop{
		web: workload(0, "web", "h1", webIP), api: workload(1, "api", "h2", apiIP), db: workload(2, "db", "h2", dbIP),
		webApp: app("web", bocage.ApplicationSpec{Consumes: []bocage.Consume{{Service: "api"}}}),
		apiApp: app("api", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "http", Port: 8080, To: to("web")}}, Consumes: []bocage.Consume{{Service: "db"}}}),
		dbApp:  app("db", bocage.ApplicationSpec{Provides: []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}, To: to("api")}}}),
		guardrail: &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "pci"}, Spec: bocage.GuardrailSpec{
			Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
			Never: []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "web"}}}}}}},
		scope: &bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: "shop"}, Spec: bocage.ScopeSpec{Namespaces: []string{"shop"}, Mode: bocage.ModeEnforce}},
	}
}

func (s *shop) all() []bocage.Resource {
	return []bocage.Resource{s.web, s.api, s.db, s.webApp, s.apiApp, s.dbApp, s.guardrail, s.scope}
}

// TestLoop follows one declaration from the store to enforced and back.
func TestLoop(t *testing.T) {
	inBubble(t, func(b *bench) {
		_, p := b.startShop()
		b.wantActive("g1")
		if b.notices.Load() != 1 {
			t.Fatalf("agents were told of generation %d", b.notices.Load())
		}
		for _, flow := range []struct {
			source, destination string
			port                uint16
			verdict             bocage.Verdict
			code                bocage.ReasonCode
		}{
			{webIP, apiIP, 8080, bocage.VerdictAllow, bocage.ReasonRule},
			{apiIP, webIP, 8080, bocage.VerdictDrop, bocage.ReasonDefaultDeny},
			{webIP, dbIP, 5432, bocage.VerdictDrop, bocage.ReasonGuardrail},
			{webIP, dbIP, 5433, bocage.VerdictDrop, bocage.ReasonDefaultDeny},
		} {
			if v, c := b.decide(flow.source, flow.destination, flow.port, "h1", "h2"); v != flow.verdict || c != flow.code {
				t.Errorf("%v: %s (%s)", flow, v, c)
			}
		}
		if v, _ := b.decide(apiIP, dbIP, 5432, "h2"); v != bocage.VerdictAllow {
			t.Errorf("api to db: %s", v)
		}
		if len(b.ruleset("h1").Ports) != 1 || len(b.ruleset("h2").Ports) != 2 {
			t.Errorf("ports are not those of the hosts")
		}

		app := get[*bocage.Application](b, "shop", "api")
		b.condition(app.Status.Conditions, bocage.ConditionAccepted, "True", "Accepted")
		b.condition(app.Status.Conditions, bocage.ConditionCompiled, "True", "Compiled")
		b.condition(app.Status.Conditions, bocage.ConditionProved, "True", "Proved")
		b.condition(app.Status.Conditions, bocage.ConditionEnforced, "False", "Waiting")
		b.taken(1, "h2")
		b.settle()
		c := b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
		if c.ObservedGeneration != 1 {
			t.Errorf("observed generation %d", c.ObservedGeneration)
		}
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "False", "Waiting")
		b.condition(get[*bocage.Guardrail](b, "", "pci").Status.Conditions, bocage.ConditionEnforced, "False", "Waiting")
		b.taken(1, "h1")
		b.settle()
		b.condition(get[*bocage.Guardrail](b, "", "pci").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
		b.condition(get[*bocage.Generation](b, "", "g1").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")

		// Heartbeats and our own writes compile nothing and write nothing.
		before := p.Counters()
		for range 5 {
			b.taken(1, "h1", "h2")
			b.settle()
		}
		if after := p.Counters(); after.Statuses != before.Statuses || after.Compiled != before.Compiled || after.Published != 1 {
			t.Errorf("heartbeats cause work: %+v, before %+v", after, before)
		}

		// One declaration changes: it waits for its hosts, the others do not blink.
		changed := get[*bocage.Application](b, "shop", "api")
		changed.Spec.Provides[0].Port = 8081
		b.declare(changed)
		b.settle()
		b.wantActive("g2")
		b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", "Waiting")
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
		time.Sleep(2 * enforcedGrace)
		b.settle()
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "False", "Waiting")
		b.taken(2, "h1", "h2")
		b.settle()
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
		b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
	})
}

// TestQuarantine cuts a workload off, and time brings it back.
func TestQuarantine(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.startShop()
		started := time.Now()
		q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"}, Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: started.Add(time.Minute)}}
		b.declare(q)
		synctest.Wait() // no timer has to run: what tightens does not wait
		if v, c := b.decide(webIP, apiIP, 8080, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Fatalf("quarantined: %s (%s)", v, c)
		}
		if passed := time.Since(started); passed != 0 {
			t.Errorf("it took %s", passed)
		}
		tc := &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: "db"}, Spec: bocage.ThreatConditionSpec{
			Workload: "shop/db", Level: bocage.LevelQuarantine, Reason: "test", Expires: started.Add(2 * time.Minute)}}
		b.declare(tc)
		synctest.Wait()
		if v, c := b.decide(apiIP, dbIP, 5432, "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Fatalf("quarantined by a condition: %s (%s)", v, c)
		}
		time.Sleep(time.Minute)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 8080, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("after its end: %s", v)
		}
		if len(b.ruleset("h1").Refused) != 1 {
			t.Errorf("refused: %v", b.ruleset("h1").Refused)
		}
		b.condition(get[*bocage.Quarantine](b, "", "web").Status.Conditions, bocage.ConditionCompiled, "False", compile.Expired)
		time.Sleep(time.Minute)
		b.settle()
		if v, _ := b.decide(apiIP, dbIP, 5432, "h2"); v != bocage.VerdictAllow {
			t.Errorf("after the condition's end: %s", v)
		}
	})
}

// TestRestart shows that generations are numbered on, and that the same content
// keeps its number.
func TestRestart(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, _ := b.startShop()
		b.remove(s.scope)
		b.settle()
		b.wantActive("g2")
		b.stop()
		b.start()
		b.settle()
		b.wantActive("g2")
		b.stop()
		// Somebody deletes the records; the number does not go back.
		all, _ := b.generations()
		for _, g := range all {
			b.remove(g)
		}
		b.declare(s.scope)
		b.start()
		b.settle()
		b.wantActive("g3")
		// A new host gets its part without a new generation.
		b.taken(0, "h9")
		b.settle()
		if rs := b.ruleset("h9"); rs.Generation != 3 || len(rs.Rules) != 0 || len(rs.Peers) == 0 {
			t.Errorf("the ruleset of a host without workloads: %+v", rs)
		}
		b.wantActive("g3")
		for i := range 30 {
			s.scope.Spec.Mode = []string{bocage.ModeObserve, bocage.ModeEnforce}[i%2]
			b.declare(s.scope)
			b.settle()
		}
		b.wantActive("g33")
		if all, _ := b.generations(); len(all) != keep {
			t.Errorf("%d generations are kept", len(all))
		}
		b.remove(s.web)
		b.remove(&bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h9"}})
		b.settle()
		for _, host := range []string{"h1", "h9"} {
			if answer := b.ask(host, Question{}); !answer.Empty() {
				t.Errorf("%s, which is gone, gets %v", host, answer)
			}
		}
	})
}

// TestFailedProof shows that what is not proved never gets out.
func TestFailedProof(t *testing.T) {
	inBubble(t, func(b *bench) {
		_, p := b.startShop()
		b.taken(1, "h1", "h2")
		b.settle()
		p.prove = func(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
			proofs := prove.Prove(in, rs)
			if len(in.Applications) > 3 {
				proofs[1].Holds, proofs[1].Counterexample = false, "shop/web -> shop/db TCP/5432 gets allow"
			}
			return proofs
		}
		b.declare(&bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "bad"},
			Spec: bocage.ApplicationSpec{Workload: bocage.Selector{MatchLabels: map[string]string{"app": "web"}}, Consumes: []bocage.Consume{{Service: "db"}}}})
		b.settle()
		b.wantActive("g1")
		g := get[*bocage.Generation](b, "", "g2")
		if g.Status.Active || len(prove.Failed(g.Status.Proofs)) != 1 {
			t.Errorf("blocked generation: %+v", g.Status)
		}
		b.condition(g.Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if rs := b.ruleset("h1"); rs.Generation != 1 {
			t.Errorf("generation %d got out", rs.Generation)
		}
		c := b.condition(get[*bocage.Guardrail](b, "", "pci").Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if !strings.Contains(c.Message, "shop/web -> shop/db TCP/5432") {
			t.Errorf("the counterexample is not told: %s", c.Message)
		}
		b.condition(get[*bocage.Application](b, "shop", "bad").Status.Conditions, bocage.ConditionProved, "False", "Blocked")
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionProved, "True", "Proved")
		b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")

		// A quarantine gets through all the same, and nothing else does.
		q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"}, Spec: bocage.QuarantineSpec{Workload: "shop/api"}}
		b.declare(q)
		b.settle()
		b.wantActive("g3")
		if v, c := b.decide(webIP, apiIP, 8080, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Errorf("quarantined while blocked: %s (%s)", v, c)
		}
		if d, ok := b.ruleset("h1").Decision(b.ruleset("h1").Refused[0].Decision); !ok || d.By[0].Name != "api" {
			t.Errorf("decided by %v", d)
		}
		if v, c := b.decide(webIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonGuardrail {
			t.Errorf("the blocked change: %s (%s)", v, c)
		}
		b.settle()
		b.wantActive("g3")
		b.remove(&bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "bad"}})
		b.remove(q)
		b.settle()
		b.wantActive("g5")
		b.condition(get[*bocage.Guardrail](b, "", "pci").Status.Conditions, bocage.ConditionProved, "True", "Proved")
		b.declare(&bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: "other"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeObserve}})
		b.settle()
		b.wantActive("g6")
	})
}

// TestSeveralControllers lets two rooms share one store.
func TestSeveralControllers(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.start()
		b.start()
		b.settle()
		for i := range 20 {
			s.apiApp.Spec.Provides[0].Port = uint16(9000 + i)
			b.declare(s.apiApp)
			if i%3 == 0 {
				b.settle()
			}
		}
		b.settle()
		_, active := b.generations()
		if len(active) != 1 {
			t.Fatalf("active: %v", active)
		}
		if v, _ := b.decide(webIP, apiIP, 9019, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("the last declaration is not in force: %s", v)
		}
		if name := fmt.Sprintf("g%d", b.ruleset("h1").Generation); name != active[0] {
			t.Errorf("active is %s, the rulesets are of %s", active[0], name)
		}
		before := b.rooms[0].Counters().Published + b.rooms[1].Counters().Published
		time.Sleep(time.Minute)
		b.settle()
		if after := b.rooms[0].Counters().Published + b.rooms[1].Counters().Published; after != before {
			t.Errorf("the two overwrite each other: %d more generations", after-before)
		}
	})
}

// brittle is a store whose watches break and whose writes are refused at times.
type brittle struct {
	store.Store
	mu      sync.Mutex
	watches []context.CancelFunc
	refuse  atomic.Int32 // so many writes
}

func (s *brittle) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.watches = append(s.watches, cancel)
	s.mu.Unlock()
	return s.Store.Watch(ctx, prefix, after)
}

func (s *brittle) Apply(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	for _, op := range ops {
		if op.Key == recordKey && s.refuse.Add(-1) >= 0 {
			return 0, store.ErrConflict
		}
	}
	return s.Store.Apply(ctx, ops...)
}

func (s *brittle) breakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cancel := range s.watches {
		cancel()
	}
	s.watches = nil
}

func TestBrokenWatchesAndConflicts(t *testing.T) {
	inBubble(t, func(b *bench) {
		fragile := &brittle{Store: b.store}
		b.store = fragile
		s, p := b.startShop()
		fragile.breakWatches()
		s.apiApp.Spec.Provides[0].Port = 9000
		b.declare(s.apiApp)
		time.Sleep(retryMost)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 9000, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("after a broken watch: %s", v)
		}
		fragile.refuse.Store(3)
		s.apiApp.Spec.Provides[0].Port = 9001
		b.declare(s.apiApp)
		time.Sleep(retryMost)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 9001, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("after conflicts: %s", v)
		}
		if c := p.Counters(); c.Relists == 0 || c.Failures < 3 {
			t.Errorf("counters: %+v", c)
		}
	})
}

// TestLargeSite publishes more than one transaction takes.
func TestLargeSite(t *testing.T) {
	inBubble(t, func(b *bench) {
		in := policytest.Site(2500)
		for i, w := range in.Workloads {
			w.Spec.Host = fmt.Sprintf("h%d", i/2)
			b.declare(w)
		}
		for _, a := range in.Applications {
			b.declare(a)
		}
		b.declare(in.Guardrails[0], in.Profiles[0], in.Scopes[0], in.Decoys[0])
		b.start()
		b.settle()
		b.wantActive("g1")
		if r, _, err := readRecord(b.ctx, b.store); err != nil || r.Base.Number != 1 || len(r.Hosts) != 1250 {
			t.Errorf("record of %d hosts: %+v, %v", len(r.Hosts), r.Base, err)
		}
		whole := compile.Compile(in).Ruleset()
		for _, host := range []string{"h0", "h700", "h1249"} {
			rs := b.ruleset(host)
			if len(rs.Ports) != 2 || len(rs.Peers) != len(whole.Peers) {
				t.Errorf("%s: %d ports, %d peers", host, len(rs.Ports), len(rs.Peers))
			}
		}
	})
}

func TestExplainAndPlan(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.before = func(p *Policy) {
			if _, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "web", To: "db"}); !errors.Is(err, ErrNoPolicy) {
				t.Errorf("before anything was compiled: %v", err)
			}
		}
		p := b.start()
		b.settle()
		e, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/web", To: "db", Port: 5432, Protocol: bocage.ProtocolTCP})
		if err != nil || e.Verdict != bocage.VerdictDrop || e.Decider.String() != "Guardrail pci spec.never[0]" {
			t.Errorf("web to db: %+v, %v", e, err)
		}
		if d, ok := p.Decision(0, e.Reason.Decision); !ok || d.By[0] != e.Decider {
			t.Errorf("decision %s: %v", e.Reason.Decision, d)
		}
		if _, err := p.Explain(b.ctx, bocage.ExplainQuery{From: "shop/nobody", To: "db"}); err == nil {
			t.Error("explains nobody")
		}
		if answer := b.ask("nowhere", Question{}); !answer.Empty() {
			t.Errorf("signed for nobody: %v", answer)
		}

		// The plan of what is there changes nothing. The builder's prover serves one
		// at a time, and that is not the one who plans.
		p.prove = func(compile.Input, *bocage.Ruleset) []bocage.Proof {
			t.Error("a plan is proved by the builder's prover")
			return nil
		}
		plan, err := p.Plan(b.ctx, []bocage.Resource{s.apiApp})
		if err != nil || len(plan.Faults)+len(plan.Reach) > 0 || len(prove.Failed(plan.Proofs)) > 0 {
			t.Errorf("plan of nothing: %+v, %v", plan, err)
		}
		moved := *s.apiApp
		moved.TypeMeta = bocage.TypeMeta{Kind: "Application"}
		moved.Spec.Provides = []bocage.Provide{s.apiApp.Spec.Provides[0]}
		moved.Spec.Provides[0].Port = 8090
		plan, err = p.Plan(b.ctx, []bocage.Resource{&moved})
		if err != nil || len(plan.Reach) != 2 {
			t.Fatalf("plan: %+v, %v", plan, err)
		}
		lost, gained := plan.Reach[0], plan.Reach[1]
		if lost.From != "shop app=web" || lost.To != "shop app=api" || lost.Ports.First != 8080 || lost.Before != bocage.VerdictAllow || lost.After != bocage.VerdictDrop {
			t.Errorf("lost: %+v", lost)
		}
		if gained.Ports.First != 8090 || gained.After != bocage.VerdictAllow || gained.By.String() != "Application shop/api spec.provides[0] (shop.yaml:api)" {
			t.Errorf("gained: %+v", gained)
		}
		b.wantActive("g1")
		bad := &bocage.Guardrail{TypeMeta: bocage.TypeMeta{Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: "bad"}, Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Inspect: "nothing"}}}
		plan, err = p.Plan(b.ctx, []bocage.Resource{bad})
		if err != nil || len(plan.Faults) != 1 || !strings.Contains(plan.Faults[0].String(), "nothing") {
			t.Errorf("plan with an unknown profile: %+v, %v", plan, err)
		}
	})
}
