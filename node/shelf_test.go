package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/agent"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
)

// signer is a controller's hand.
type signer struct {
	t       testing.TB
	bundle  *identity.Bundle
	svid    *identity.SVID
	foreign *identity.SVID // an agent's, which may not sign for controllers
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	authority, err := identity.OpenAuthority(t.TempDir(), "test.internal")
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{t: t, bundle: authority.Bundle()}
	if s.svid, err = authority.IssueSVID("/controller/c1", time.Hour); err != nil {
		t.Fatal(err)
	}
	if s.foreign, err = authority.IssueSVID("/agent/h1", time.Hour); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *signer) sign(kind string, word any) []byte {
	s.t.Helper()
	return s.signAs(s.svid, kind, word)
}

func (s *signer) signAs(who *identity.SVID, kind string, word any) []byte {
	s.t.Helper()
	payload, err := json.Marshal(word)
	if err != nil {
		s.t.Fatal(err)
	}
	envelope, err := who.Sign(kind, payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return envelope
}

// credentials puts what an agent has into a folder.
func (s *signer) credentials(dir string) *credentials {
	s.t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := s.foreign.Save(dir); err != nil {
		s.t.Fatal(err)
	}
	if err := identity.SaveBundle(dir, s.bundle); err != nil {
		s.t.Fatal(err)
	}
	have, err := loadCredentials(dir, "test.internal")
	if err != nil {
		s.t.Fatal(err)
	}
	return have
}

const (
	refuse     = bocage.DecisionID(1)
	quarantine = bocage.DecisionID(2)
)

// generation makes a ruleset for h1 that refuses some identities.
func generation(n uint64, confirmBy time.Time, refused ...bocage.Identity) *bocage.Ruleset {
	rs := &bocage.Ruleset{Generation: n, Host: "h1", Default: refuse, ConfirmBy: confirmBy, Decisions: []bocage.Decision{
		{ID: refuse, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: quarantine, Verdict: bocage.VerdictDrop, Code: bocage.ReasonQuarantine},
	}, Peers: []bocage.Peer{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 32), Identity: 20, Group: 20}}}
	for _, id := range refused {
		rs.Refused = append(rs.Refused, bocage.Refusal{Identity: id, Decision: quarantine})
	}
	rs.Digest = rs.ContentDigest()
	return rs
}

func refusedIn(rs *bocage.Ruleset) []bocage.Identity {
	var all []bocage.Identity
	if rs == nil {
		return nil
	}
	for _, r := range rs.Refused {
		all = append(all, r.Identity)
	}
	return all
}

// TestShelf takes, confirms and leaves generations, and asks after each step which
// one is to be enforced, before the deadline and after, of the shelf itself and of
// one opened anew over the same folder, as a process that was killed would find it.
func TestShelf(t *testing.T) {
	s := newSigner(t)
	early := time.Now()
	deadline, late := early.Add(time.Hour), early.Add(2*time.Hour)
	never := time.Time{}
	type want struct {
		generation uint64
		refused    []bocage.Identity
	}
	type step struct {
		do          func(*shelf)
		early, late want
		files       []string // of rulesets before the newest
	}
	take := func(rs *bocage.Ruleset) func(*shelf) {
		return func(sh *shelf) { sh.take(rs, s.sign(bocage.SignedRuleset, rs)) }
	}
	confirm := func(n uint64) func(*shelf) {
		return func(sh *shelf) {
			c := bocage.Confirmation{Generation: n}
			sh.confirm(c, s.sign(bocage.SignedConfirm, c))
		}
	}
	leave := func(sh *shelf) { sh.leave() }
	w := func(n uint64, refused ...bocage.Identity) want { return want{n, refused} }
	tests := []struct {
		name  string
		steps []step
	}{
		{"nothing to confirm", []step{
			{take(generation(1, never, 30)), w(1, 30), w(1, 30), nil},
			{take(generation(2, never)), w(2), w(2), nil},
		}},
		{"nothing to go back to", []step{
			{take(generation(1, deadline)), w(1), w(1), nil},
		}},
		{"confirmed", []step{
			{take(generation(1, never)), w(1), w(1), nil},
			{take(generation(2, deadline)), w(2), w(1), []string{"ruleset-1.signed"}},
			{confirm(2), w(2), w(2), nil},
			{take(generation(3, deadline)), w(3), w(2), []string{"ruleset-2.signed"}},
		}},
		{"not confirmed: gone back from for good, with what it refused", []step{
			{take(generation(1, never, 30)), w(1, 30), w(1, 30), nil},
			{take(generation(2, deadline, 31)), w(2, 31), w(1, 30, 31), []string{"ruleset-1.signed"}},
			{leave, w(1, 30, 31), w(1, 30, 31), []string{"ruleset-1.signed"}},
			{confirm(2), w(1, 30, 31), w(1, 30, 31), []string{"ruleset-1.signed"}},
			{take(generation(3, never, 32)), w(3, 32), w(3, 32), nil},
		}},
		{"left, and the next is not confirmed either", []step{
			{take(generation(1, never)), w(1), w(1), nil},
			{take(generation(2, deadline)), w(2), w(1), []string{"ruleset-1.signed"}},
			{leave, w(1), w(1), []string{"ruleset-1.signed"}},
			{take(generation(3, deadline, 33)), w(3, 33), w(1, 33), []string{"ruleset-1.signed"}},
		}},
		{"a quarantine while confirming", []step{
			{take(generation(1, never)), w(1), w(1), nil},
			{take(generation(2, deadline)), w(2), w(1), []string{"ruleset-1.signed"}},
			{take(generation(3, deadline, 40)), w(3, 40), w(1, 40), []string{"ruleset-1.signed", "ruleset-2.signed"}},
			{confirm(2), w(3, 40), w(2, 40), []string{"ruleset-2.signed"}},
			{confirm(3), w(3, 40), w(3, 40), nil},
		}},
		{"confirmed before it came", []step{
			{confirm(5), w(0), w(0), nil},
			{take(generation(4, never)), w(4), w(4), nil},
			{take(generation(5, deadline)), w(5), w(5), nil},
		}},
		{"a newer one that stays", []step{
			{take(generation(1, never)), w(1), w(1), nil},
			{take(generation(2, deadline)), w(2), w(1), []string{"ruleset-1.signed"}},
			{take(generation(3, never)), w(3), w(3), nil},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			have := s.credentials(dir)
			shelf := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
			for i, step := range test.steps {
				step.do(shelf)
				reopened := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
				for name, sh := range map[string]interface {
					standing(time.Time) (*bocage.Ruleset, bool)
				}{"the shelf": shelf, "one opened anew": reopened} {
					if name == "one opened anew" && len(shelf.rulesets) == 0 {
						continue // a confirmation alone is of nothing
					}
					for moment, want := range map[time.Time]want{early: step.early, late: step.late} {
						rs, back := sh.standing(moment)
						if rs == nil {
							rs = &bocage.Ruleset{}
						}
						if rs.Generation != want.generation || !slices.Equal(refusedIn(rs), want.refused) || back != (rs.Generation < shelf.newest()) {
							t.Errorf("step %d, %s, late %v: generation %d (back: %v) refuses %v, want %+v", i, name, moment.Equal(late),
								rs.Generation, back, refusedIn(rs), want)
						}
					}
				}
				var files []string
				for _, path := range shelf.older() {
					files = append(files, filepath.Base(path))
				}
				if !slices.Equal(files, step.files) {
					t.Errorf("step %d: %v are kept, want %v", i, files, step.files)
				}
			}
		})
	}
}

// TestShelfIsBounded keeps few of many that nobody confirms, the one that stays
// among them.
func TestShelfIsBounded(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	shelf := openShelf(dir, s.credentials(dir), "h1", slog.New(slog.DiscardHandler))
	first := generation(1, time.Time{})
	shelf.take(first, s.sign(bocage.SignedRuleset, first))
	soon := time.Now().Add(time.Minute)
	for n := uint64(2); n < 40; n++ {
		rs := generation(n, soon)
		shelf.take(rs, s.sign(bocage.SignedRuleset, rs))
	}
	if n := len(shelf.older()); n != mostUnconfirmed {
		t.Errorf("%d rulesets before the newest are kept, want %d", n, mostUnconfirmed)
	}
	if rs, _ := shelf.standing(soon); rs.Generation != 1 {
		t.Errorf("goes back to %d, want 1", rs.Generation)
	}
}

// TestShelfRefusesWhatIsDamaged opens folders that somebody has been at.
func TestShelfRefusesWhatIsDamaged(t *testing.T) {
	s := newSigner(t)
	late := time.Now().Add(time.Hour)
	tests := []struct {
		name   string
		damage func(dir string) error
		want   uint64 // to be enforced when it is late
	}{
		{"nothing", func(string) error { return nil }, 1},
		{"the newest", func(dir string) error { return os.WriteFile(filepath.Join(dir, newestFile), []byte("x"), 0o600) }, 0},
		{"the one before", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ruleset-1.signed"), []byte("x"), 0o600)
		}, 2},
		{"one before that an agent signed", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ruleset-1.signed"), s.signAs(s.foreign, bocage.SignedRuleset, generation(1, time.Time{})), 0o600)
		}, 2},
		{"a confirmation that an agent signed", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, confirmFile), s.signAs(s.foreign, bocage.SignedConfirm, bocage.Confirmation{Generation: 9}), 0o600)
		}, 1},
		{"a candidate as a ruleset", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, newestFile), s.sign(bocage.SignedCandidate, generation(7, time.Time{})), 0o600)
		}, 0},
		{"the note of what was left", func(dir string) error { return os.WriteFile(filepath.Join(dir, leftFile), []byte("two"), 0o600) }, 1},
	}
	for _, test := range tests {
		dir := t.TempDir()
		have := s.credentials(dir)
		shelf := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
		for _, rs := range []*bocage.Ruleset{generation(1, time.Time{}), generation(2, late)} {
			shelf.take(rs, s.sign(bocage.SignedRuleset, rs))
		}
		if err := test.damage(dir); err != nil {
			t.Fatal(err)
		}
		rs, _ := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler)).standing(late)
		if rs == nil {
			rs = &bocage.Ruleset{}
		}
		if rs.Generation != test.want {
			t.Errorf("%s: generation %d, want %d", test.name, rs.Generation, test.want)
		}
	}
}

// controllers answers an agent's questions as a test wants; unset, none is there.
type controllers struct {
	stream.Exchange
	mu     sync.Mutex
	answer func(rulesetQuestion) rulesetAnswer
}

func (c *controllers) Ask(_ context.Context, _ string, data []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer == nil {
		return nil, fmt.Errorf("nobody is there")
	}
	var q rulesetQuestion
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, err
	}
	return json.Marshal(c.answer(q))
}

func (c *controllers) say(answer func(rulesetQuestion) rulesetAnswer) {
	c.mu.Lock()
	c.answer = answer
	c.mu.Unlock()
}

// site is an agent's rulesets, its loop and the kernel, without the rest.
type site struct {
	t       testing.TB
	room    int // for rules and for addresses; 0: what a dataplane has by itself
	cfg     Config
	pins    string
	there   *controllers
	process *agentProcess
	notice  chan struct{}
	stop    func()
}

// start begins a process; online says whether it reaches a controller.
func (s *site) start(online bool) {
	s.t.Helper()
	d, err := dataplane.Open(dataplane.Config{Host: "h1", PinDir: s.pins, FlowEntries: 1024, RuleEntries: s.room, PeerEntries: s.room})
	if err != nil {
		s.t.Fatal(err)
	}
	s.process = &agentProcess{cfg: s.cfg, logger: slog.New(slog.DiscardHandler), dataplane: d, exchange: s.there, applied: make(chan struct{}, 1)}
	joined := make(chan struct{})
	s.notice = make(chan struct{}, 1)
	if online {
		have, err := loadCredentials(s.cfg.agentDir("identity"), s.cfg.TrustDomain)
		if err != nil {
			s.t.Fatal(err)
		}
		s.process.bundle = have.bundle
		close(joined)
	}
	loop, err := agent.New(agent.Config{Host: "h1", Dataplane: reportedDataplane{d, s.process},
		Rulesets: &rulesetSource{agent: s.process, joined: joined, notice: s.notice},
		Links:    func(ctx context.Context, _ func([]host.Link) error) error { <-ctx.Done(); return ctx.Err() },
		Publish:  func(context.Context, []bocage.FlowEvent, []bocage.Cadence) {}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.process.loop = loop
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = loop.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := d.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *site) status() bocage.HostStatus {
	a := s.process
	return a.status(report{a.dataplane.Generation(), a.candidate().Generation, a.reverted.Load(), a.faultText()})
}

// until waits for what the host reports of itself.
func (s *site) until(what string, holds func(bocage.HostStatus) bool) bocage.HostStatus {
	s.t.Helper()
	timeout, tick := time.After(time.Minute), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		status := s.status()
		if holds(status) {
			return status
		}
		select {
		case <-tick.C:
		case <-timeout:
			s.t.Fatalf("still waiting for %s: %+v", what, status)
		}
	}
}

func newSite(t testing.TB) (*site, *signer) {
	hosttest.Root(t)
	sign := newSigner(t)
	s := &site{t: t, there: &controllers{}, pins: filepath.Join(t.TempDir(), "bpf"),
		cfg: Config{Host: "h1", TrustDomain: "test.internal", StateDir: t.TempDir()}}
	sign.credentials(s.cfg.agentDir("identity"))
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
		if err := dataplane.Remove(s.pins); err != nil {
			t.Error(err)
		}
	})
	return s, sign
}

// offer answers with the first ruleset that is newer than what the agent has.
func offer(sign *signer, all ...*bocage.Ruleset) func(rulesetQuestion) rulesetAnswer {
	return func(q rulesetQuestion) rulesetAnswer {
		for _, rs := range all {
			if rs.Generation > q.Have {
				return rulesetAnswer{Ruleset: sign.sign(bocage.SignedRuleset, rs)}
			}
		}
		return rulesetAnswer{}
	}
}

func TestMain(m *testing.M) {
	hosttest.ManyAtOnce()
	os.Exit(m.Run())
}

// soon is in how long somebody must confirm what these tests have nobody confirm: longer
// than a busy machine takes to bring it into force.
const soon = 15 * time.Second

// TestRootWayBack takes an agent that nobody confirms through its deadline: alive,
// killed before and started after, with every controller dead. It goes back, says
// so, keeps who is quarantined, does not take the same again and does take the next.
func TestRootWayBack(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(s *site){
		"alive":                      nil,
		"killed before the deadline": func(*site) {},
		"killed between its note and the kernel": func(s *site) {
			note := filepath.Join(s.cfg.agentDir("identity"), leftFile)
			if err := os.WriteFile(note, []byte("2"), 0o600); err != nil {
				s.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, sign := newSite(t)
			one := generation(1, time.Time{}, 30)
			s.there.say(offer(sign, one))
			s.start(true)
			s.until("generation 1", func(h bocage.HostStatus) bool { return h.Generation == 1 })
			deadline := time.Now().Add(soon)
			two := generation(2, deadline, 31)
			s.there.say(offer(sign, one, two))
			signal(s.notice)
			s.until("generation 2", func(h bocage.HostStatus) bool { return h.Generation == 2 })
			s.there.say(nil)
			if interrupt != nil {
				s.stop()
				interrupt(s)
				<-time.After(time.Until(deadline))
				s.start(false)
			}
			h := s.until("the way back", func(h bocage.HostStatus) bool { return h.Generation == 1 && h.RevertedFrom == 2 })
			if time.Now().Before(deadline) {
				t.Error("it went back before the deadline")
			}
			if !strings.Contains(h.Conditions[0].Message, "nobody confirmed generation 2") {
				t.Errorf("condition %+v", h.Conditions[0])
			}
			s.until("both quarantines", func(bocage.HostStatus) bool {
				return slices.Equal(refusedIn(s.process.ruleset.Load()), []bocage.Identity{30, 31})
			})
			// A restart later it stays there, offered the same again or a late word.
			s.stop()
			s.there.say(func(q rulesetQuestion) rulesetAnswer {
				a := rulesetAnswer{}
				if q.Confirmed < 2 {
					a.Confirm = sign.sign(bocage.SignedConfirm, bocage.Confirmation{Generation: 2})
				}
				if q.Have < 2 {
					a.Ruleset = sign.sign(bocage.SignedRuleset, two)
				}
				return a
			})
			s.start(true)
			s.until("it to stay back", func(h bocage.HostStatus) bool { return h.Generation == 1 && h.RevertedFrom == 2 })
			s.there.say(offer(sign, generation(3, time.Time{})))
			signal(s.notice)
			s.until("the next generation", func(h bocage.HostStatus) bool { return h.Generation == 3 && h.RevertedFrom == 0 })
			s.until("nobody in quarantine", func(bocage.HostStatus) bool { return len(refusedIn(s.process.ruleset.Load())) == 0 })
		})
	}
}

// TestRootConfirmed keeps what was confirmed, past the deadline and across restarts.
func TestRootConfirmed(t *testing.T) {
	t.Parallel()
	s, sign := newSite(t)
	one := generation(1, time.Time{})
	s.there.say(offer(sign, one))
	s.start(true)
	s.until("generation 1", func(h bocage.HostStatus) bool { return h.Generation == 1 })
	deadline := time.Now().Add(soon)
	rulesets := offer(sign, one, generation(2, deadline))
	s.there.say(func(q rulesetQuestion) rulesetAnswer {
		a := rulesets(q)
		if q.Have == 2 && q.Confirmed < 2 {
			a.Confirm = sign.sign(bocage.SignedConfirm, bocage.Confirmation{Generation: 2})
		}
		return a
	})
	signal(s.notice)
	s.until("generation 2", func(h bocage.HostStatus) bool { return h.Generation == 2 })
	confirmed := filepath.Join(s.cfg.agentDir("identity"), confirmFile)
	s.until("the confirmation", func(bocage.HostStatus) bool { _, err := os.Stat(confirmed); return err == nil })
	s.there.say(nil)
	<-time.After(time.Until(deadline.Add(100 * time.Millisecond)))
	for range 2 {
		if h := s.status(); h.Generation != 2 || h.RevertedFrom != 0 {
			t.Errorf("generation %d, reverted from %d", h.Generation, h.RevertedFrom)
		}
		s.stop()
		s.start(false)
		s.until("the kept ruleset", func(bocage.HostStatus) bool { return s.process.ruleset.Load() != nil })
	}
	s.stop()
}

// TestRootCandidate has a candidate evaluated, survive a restart of the agent, give
// way to another, end when its own generation comes into force, and be refused when
// an agent signed it.
func TestRootCandidate(t *testing.T) {
	s, sign := newSite(t)
	forged := sign.signAs(sign.foreign, bocage.SignedCandidate, generation(9, time.Time{}))
	s.there.say(offer(sign, generation(1, time.Time{})))
	s.start(true)
	s.until("generation 1", func(h bocage.HostStatus) bool { return h.Generation == 1 })
	candidate := func(n uint64) {
		s.there.say(func(q rulesetQuestion) rulesetAnswer {
			if q.Candidate == n {
				return rulesetAnswer{}
			}
			return rulesetAnswer{Candidate: sign.sign(bocage.SignedCandidate, generation(n, time.Time{}))}
		})
		signal(s.notice)
		s.until("the candidate", func(h bocage.HostStatus) bool { return h.Candidate == n })
	}
	candidate(2)
	s.stop()
	s.start(true)
	s.until("the candidate after a restart", func(h bocage.HostStatus) bool { return h.Generation == 1 && h.Candidate == 2 })
	candidate(3)
	s.there.say(func(rulesetQuestion) rulesetAnswer { return rulesetAnswer{Candidate: forged} })
	signal(s.notice)
	s.until("the refusal", func(h bocage.HostStatus) bool {
		return h.Candidate == 3 && strings.Contains(h.Conditions[0].Message, "no controller")
	})
	s.there.say(offer(sign, generation(3, time.Time{})))
	signal(s.notice)
	s.until("the candidate in force", func(h bocage.HostStatus) bool { return h.Generation == 3 && h.Candidate == 0 })
	candidate(4)
	s.there.say(func(q rulesetQuestion) rulesetAnswer { return rulesetAnswer{NoCandidate: q.Candidate != 0} })
	signal(s.notice)
	s.until("the end of the candidate", func(h bocage.HostStatus) bool { return h.Generation == 3 && h.Candidate == 0 })
}

// TestRootNotApplied tells which generation could not be put in force, and goes on
// to the next.
func TestRootNotApplied(t *testing.T) {
	s, sign := newSite(t)
	bad := generation(2, time.Time{})
	bad.Default = 77 // is not among its decisions
	s.there.say(offer(sign, generation(1, time.Time{}), bad))
	s.start(true)
	h := s.until("the fault", func(h bocage.HostStatus) bool { return h.Conditions[0].Reason == notApplied })
	if h.Generation != 1 || h.Conditions[0].ObservedGeneration != 2 || h.Conditions[0].Status != "False" {
		t.Errorf("status %+v", h)
	}
	s.there.say(offer(sign, generation(3, time.Time{})))
	signal(s.notice)
	s.until("the next", func(h bocage.HostStatus) bool { return h.Generation == 3 && h.Conditions[0].Status == "True" })
	s.stop()
}
