package node

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage/store"
)

// aSite is some controllers' clocks, which hear each other when somebody says so.
type aSite struct {
	true    time.Time // what the time really is
	running time.Duration
	came    store.Revision // of who came last
	nodes   []*aNode
}

type aNode struct {
	site  *aSite
	clock *siteClock
	off   time.Duration // by how much its machine's clock is wrong
	came  store.Revision
	gone  bool
	cut   bool // off from the store
}

func newASite() *aSite { return &aSite{true: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)} }

// join adds a controller that hears the others before it goes by anything.
func (s *aSite) join(off time.Duration) *aNode {
	n := s.comes(off)
	n.clock.begin()
	n.clock.Now()
	return n
}

// comes adds one that does not know yet whether it has heard all.
func (s *aSite) comes(off time.Duration) *aNode {
	n := &aNode{site: s, off: off}
	n.clock = newSiteClock(func() (time.Time, time.Duration) { return s.true.Add(n.off), s.running })
	n.clock.called(string(rune('a' + len(s.nodes))))
	for i, other := range s.nodes {
		if !other.gone {
			n.clock.hear(string(rune('a'+i)), other.says())
		}
	}
	n.clock.Now()
	n.arrives()
	s.nodes = append(s.nodes, n)
	return n
}

func (n *aNode) arrives() {
	n.site.came++
	n.came = n.site.came
	n.clock.came(n.came)
}

func (n *aNode) says() presence {
	agreed, wall := n.clock.both()
	if n.clock.strayed() {
		n.arrives()
	}
	return presence{Since: n.came, Wall: wall, Agreed: agreed}
}

// pass lets time pass, with a beat of everybody who lives every so often.
func (s *aSite) pass(d time.Duration) {
	for ; d > 0; d -= beatEvery {
		s.true, s.running = s.true.Add(beatEvery), s.running+beatEvery
		for i, n := range s.nodes {
			if n.gone {
				continue
			}
			if n.cut {
				n.clock.Now()
				continue
			}
			for _, other := range s.nodes {
				if other != n && !other.gone && !other.cut {
					other.clock.hear(string(rune('a'+i)), n.says())
				}
			}
		}
	}
}

func (s *aSite) agrees(t *testing.T, off time.Duration) {
	t.Helper()
	for i, n := range s.nodes {
		if at := n.clock.Now(); !n.gone && !near(at, s.true.Add(off)) {
			t.Errorf("controller %c goes by a time that is %s off, want %s", 'a'+i, at.Sub(s.true), off)
		}
	}
}

func TestSiteClock(t *testing.T) {
	for _, wrong := range []time.Duration{time.Minute, -time.Minute, 3 * time.Hour, -3 * time.Hour, 400 * 24 * time.Hour, -400 * 24 * time.Hour} {
		t.Run(wrong.String(), func(t *testing.T) {
			t.Run("alone", func(t *testing.T) { // nobody knows better, and a clock that is set right is right
				s := newASite()
				a := s.join(wrong)
				s.pass(time.Minute)
				s.agrees(t, wrong)
				a.off = 0
				s.agrees(t, 0)
			})
			t.Run("comes", func(t *testing.T) {
				s := newASite()
				a := s.join(0)
				s.pass(time.Minute)
				b := s.join(wrong)
				s.agrees(t, 0)
				s.pass(time.Minute)
				s.agrees(t, 0)
				if a.clock.fault() != nil || b.clock.fault() == nil {
					t.Errorf("said to be wrong: %v and %v", a.clock.fault(), b.clock.fault())
				}
				for i, n := range s.nodes {
					if what, is := n.clock.news(); what == "" || !is {
						t.Errorf("%c says nothing", 'a'+i)
					}
					if what, is := n.clock.news(); what == "" || is {
						t.Errorf("%c says it once more: %s", 'a'+i, what)
					}
				}
				a.gone = true
				s.pass(time.Hour)
				s.agrees(t, 0) // what was agreed outlives who was right
				c := s.join(0)
				s.pass(time.Minute)
				s.agrees(t, 0)
				b.off = 0
				s.pass(time.Minute)
				s.agrees(t, 0)
				if what, is := b.clock.news(); what != "" || !is || c.clock.fault() != nil {
					t.Errorf("mended, and %q", what)
				}
			})
			t.Run("is set", func(t *testing.T) { // on either of two that agreed
				for _, which := range []int{0, 1} {
					s := newASite()
					s.join(0)
					s.join(time.Second)
					s.pass(time.Minute)
					s.nodes[which].off = wrong
					s.agrees(t, 0)
					s.pass(time.Hour)
					s.agrees(t, 0)
				}
			})
			t.Run("was first", func(t *testing.T) { // of two; a third one tells who is right
				s := newASite()
				s.join(wrong)
				s.pass(time.Minute)
				s.join(0)
				s.pass(time.Minute)
				s.agrees(t, wrong)
				s.join(0)
				s.pass(time.Minute)
				s.agrees(t, 0)
			})
		})
	}
}

// TestSiteOfTwoComesToOneTime: however two controllers came to go on evenly by
// different times, they go by one soon.
func TestSiteOfTwoComesToOneTime(t *testing.T) {
	one := func(t *testing.T, s *aSite, within time.Duration) {
		t.Helper()
		if a, b := s.nodes[0].clock.Now(), s.nodes[1].clock.Now(); a.Sub(b).Abs() > within {
			t.Errorf("they go by times that are %s apart", a.Sub(b))
		}
	}
	for _, wrong := range []time.Duration{3 * time.Hour, -3 * time.Hour} {
		t.Run("come at once "+wrong.String(), func(t *testing.T) {
			for junior := range 2 { // and neither has heard the other
				s := newASite()
				a := s.comes(0)
				a.gone = true
				b := s.comes(wrong)
				a.gone = false
				if junior == 0 {
					a.arrives()
				}
				s.pass(yieldAfter + 2*beatEvery)
				one(t, s, nearby)
				s.agrees(t, []time.Duration{b.off, a.off}[junior])
			}
		})
		t.Run("the junior hears the senior before it begins "+wrong.String(), func(t *testing.T) {
			s := newASite()
			a := s.comes(0)
			a.gone = true
			b := s.comes(wrong)
			b.clock.hear("a", a.says())
			b.clock.begin()
			if at := b.clock.Now(); !near(at, s.true) {
				t.Errorf("it begins with a time that is %s off", at.Sub(s.true))
			}
			if b.clock.leapt() {
				t.Error("nothing was agreed on before")
			}
		})
		for which := range 2 {
			t.Run("set while cut off "+wrong.String(), func(t *testing.T) {
				s := newASite()
				s.join(0)
				s.join(0)
				s.pass(time.Minute)
				n := s.nodes[which]
				n.cut = true
				s.pass(time.Minute)
				n.off = wrong
				s.pass(time.Minute)
				n.cut = false
				s.pass(yieldAfter + 2*beatEvery)
				s.agrees(t, 0)
				if n.clock.fault() == nil || s.nodes[1-which].clock.fault() != nil {
					t.Error("the wrong one is said to be wrong")
				}
			})
		}
	}
	for which := range 2 {
		t.Run("one drifts", func(t *testing.T) {
			s := newASite()
			s.join(0)
			s.join(0)
			for range 1000 {
				s.nodes[which].off += 50 * time.Millisecond
				s.pass(beatEvery)
				one(t, s, 2*nearby)
			}
		})
	}
}

// TestEvenSiteKeepsTheTime: half of the clocks of a site do not move its time.
func TestEvenSiteKeepsTheTime(t *testing.T) {
	for _, wrong := range []time.Duration{3 * time.Hour, -3 * time.Hour} {
		for first := range 4 {
			s := newASite()
			for range 4 {
				s.join(0)
			}
			s.pass(time.Minute)
			s.nodes[first].off, s.nodes[(first+1)%4].off = wrong, wrong
			s.agrees(t, 0)
			s.pass(time.Hour)
			s.agrees(t, 0)
			s.nodes[(first+2)%4].off = wrong // most of them do
			s.pass(time.Minute)
			s.agrees(t, wrong)
		}
		s := newASite() // and who comes to make it even goes by what is agreed
		for _, off := range []time.Duration{0, wrong, 0, wrong} {
			s.join(off)
			s.pass(time.Minute)
			s.agrees(t, 0)
		}
	}
}

// TestSiteClocksAgree: whatever happens to one of three, the others keep the time. Who
// is near the one in the middle keeps its own, so that all may be as far off as that
// one is, and nearby.
func TestSiteClocksAgree(t *testing.T) {
	const right = 2 * time.Second // how far off a clock may be that is not wrong
	rapid.Check(t, func(t *rapid.T) {
		s := newASite()
		for range 3 {
			s.join(time.Duration(rapid.Int64Range(-right.Milliseconds(), right.Milliseconds()).Draw(t, "ms")) * time.Millisecond)
		}
		s.pass(20 * time.Second)
		victim := s.nodes[rapid.IntRange(0, 2).Draw(t, "victim")]
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				victim.off = time.Duration(rapid.IntRange(-1_000_000, 1_000_000).Draw(t, "s")) * time.Second
			case 1:
				victim.gone = !victim.gone
			}
			s.pass(time.Duration(rapid.IntRange(1, 60).Draw(t, "pass")) * time.Second)
			for _, n := range s.nodes {
				if at := n.clock.Now(); !n.gone && at.Sub(s.true).Abs() > nearby+right {
					t.Fatalf("the agreed time is %s off", at.Sub(s.true))
				}
			}
		}
	})
}
