package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bocage.dev/bocage/store"
)

const (
	// nearby is by how much clocks may differ before anybody is told, and before a
	// controller goes by another's: longer than a beat is under way on a store that is
	// slow, and far shorter than what certificates tolerate.
	nearby = 10 * time.Second
	// beatsKept is how many of a controller's last beats are remembered: the one that
	// was under way for the shortest time says best what its clock shows.
	beatsKept = 5
	// yieldAfter is after how long of disagreement the junior goes by the senior's time:
	// a few beats, since what was agreed is heard late where it has just been changed.
	yieldAfter = 3 * beatEvery
)

// siteClock is the time that the controllers of a site agree on, so that what ends and
// begins does so once, although a machine's clock is wrong. It is this machine's as
// long as all are near each other, and else:
//
//   - of three or more, the one in the middle; of an even number whose halves are
//     apart, what was agreed before, if it is not outside of both;
//   - of two, the one that goes on evenly from what was agreed before: a clock that is
//     set while the other one goes on is not believed;
//   - of two that never agreed, what the controller says that has been there for longer.
//
// Where they would go by different times nevertheless, because each goes on evenly, what
// counts after a while is what the senior goes by. Who is alone has to believe its
// machine; if that was set meanwhile, it is nobody's senior any more.
//
// What was agreed against this machine's clock stays agreed when the others go, until
// that is set right or the process begins anew.
type siteClock struct {
	// read tells what this machine says the time is, and how long it has been running
	// for, which nobody sets.
	read func() (wall time.Time, even time.Duration)

	mu      sync.Mutex // guards all below
	name    string
	since   store.Revision
	peers   map[string]*peerClock
	agreed  instant       // what was agreed last
	known   bool          // that something was
	against bool          // and is not what this machine says
	leap    bool          // it was suddenly another
	stray   bool          // while nobody was heard
	apart   bool          // the senior goes by another time,
	apartAt time.Duration // since then
	toldOf  string
}

// instant says what the time was at a moment of this machine.
type instant struct {
	time time.Time
	at   time.Duration
}

// then is what it is at a later moment.
func (i instant) then(at time.Duration) time.Time { return i.time.Add(at - i.at) }

// peerClock is what another controller said last, the newest last.
type peerClock struct {
	since         store.Revision
	walls, agreed []instant
}

// latest is the best guess of what a clock shows: beats only ever come late.
func latest(of []instant, at time.Duration) time.Time {
	best := of[0].then(at)
	for _, i := range of[1:] {
		if then := i.then(at); then.After(best) {
			best = then
		}
	}
	return best
}

func newSiteClock(read func() (time.Time, time.Duration)) *siteClock {
	return &siteClock{read: read, peers: map[string]*peerClock{}}
}

// machineClock reads this machine's clocks.
func machineClock() func() (time.Time, time.Duration) {
	begun := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(begun)
	}
}

// Now is the time that controllers agree on.
func (c *siteClock) Now() time.Time {
	agreed, _ := c.both()
	return agreed
}

// both returns that and what this machine says.
func (c *siteClock) both() (agreed, wall time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, even := c.read()
	agreed = c.agree(wall, even)
	far := !near(agreed, wall)
	if c.known && !near(agreed, c.agreed.then(even)) {
		c.leap = true
		c.stray = c.stray || len(c.living(even)) == 0
	}
	c.agreed, c.known, c.against = instant{agreed, even}, true, far
	return agreed, wall
}

// agree decides what the time is.
func (c *siteClock) agree(wall time.Time, even time.Duration) time.Time {
	before := c.agreed.then(even)
	goesOn := func(t time.Time) bool { return c.known && near(before, t) }
	target := wall
	peers := c.living(even)
	seniors, yields := c.seniors(peers, before, even)
	switch {
	case len(peers) == 0:
		if c.against && !goesOn(wall) {
			target = before
		}
	case len(peers) == 1:
		switch theirs := latest(c.peers[peers[0]].walls, even); {
		case near(wall, theirs):
		case yields:
			target = seniors
		case goesOn(wall):
		case c.known:
			target = before
		}
	default:
		all := []time.Time{wall}
		for _, name := range peers {
			all = append(all, latest(c.peers[name].walls, even))
		}
		slices.SortFunc(all, time.Time.Compare)
		low, high := all[(len(all)-1)/2], all[len(all)/2]
		between := func(t time.Time) bool { return !t.Before(low.Add(-nearby)) && !t.After(high.Add(nearby)) }
		switch target = low; {
		case near(low, high):
		case yields && between(seniors):
			target = seniors
		case c.known && between(before):
			target = before
		}
	}
	switch {
	case near(target, wall):
		return wall
	case goesOn(target):
		return before // guesses vary a little
	}
	return target
}

// seniors returns what the time is by the controller that has been there for longest,
// and whether this one yields to it: it is another one, and this one never went by
// anything, or by another time for a while now.
func (c *siteClock) seniors(peers []string, before time.Time, even time.Duration) (t time.Time, yields bool) {
	name, since := c.name, c.since
	for _, peer := range peers {
		if p := c.peers[peer]; since == 0 || p.since < since || p.since == since && peer < name {
			name, since = peer, p.since
		}
	}
	p := c.peers[name]
	if name == c.name || p == nil {
		c.apart = false
		return t, false
	}
	t = latest(p.agreed, even)
	switch {
	case !c.known:
		return t, true
	case near(before, t):
		c.apart = false
		return t, false
	case !c.apart:
		c.apart, c.apartAt = true, even
	}
	return t, even-c.apartAt >= yieldAfter
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() <= nearby }

// living lists those of whom something was heard lately.
func (c *siteClock) living(even time.Duration) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.peers)), func(name string) bool {
		walls := c.peers[name].walls
		return even-walls[len(walls)-1].at > beatsLate
	})
}

// hear takes what another controller says of itself.
func (c *siteClock) hear(name string, said presence) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, even := c.read()
	p := c.peers[name]
	if p == nil || p.since != said.Since {
		p = &peerClock{since: said.Since}
		c.peers[name] = p
	}
	keep := func(list []instant, t time.Time) []instant {
		if n := len(list); n > 0 && !near(list[n-1].then(even), t) {
			list = nil // it was set
		}
		return append(list[max(len(list)-beatsKept+1, 0):], instant{t, even})
	}
	p.walls, p.agreed = keep(p.walls, said.Wall), keep(p.agreed, said.Agreed)
}

// forget is told that a controller has gone.
func (c *siteClock) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.peers, name)
}

// called says what this controller's name is.
func (c *siteClock) called(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name = name
}

// begin says that everybody who is there was heard: what this controller went by
// before, nobody agreed on.
func (c *siteClock) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.against, c.leap, c.stray = false, false, false, false
}

// strayed reports, once, that the time was suddenly another while nobody was heard.
func (c *siteClock) strayed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	stray := c.stray
	c.stray = false
	return stray
}

// came says since when this controller is there.
func (c *siteClock) came(at store.Revision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = at
}

// leapt reports, once, that what is agreed is suddenly another time.
func (c *siteClock) leapt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	leap := c.leap
	c.leap = false
	return leap
}

// news returns how clocks disagree, empty if they do not, and whether that is another
// than was returned last.
func (c *siteClock) news() (what string, is bool) {
	agreed, wall := c.both()
	c.mu.Lock()
	defer c.mu.Unlock()
	_, even := c.read()
	var texts, marks []string
	for _, name := range c.living(even) {
		if theirs := latest(c.peers[name].walls, even); !near(theirs, wall) {
			texts = append(texts, fmt.Sprintf("that of %s is %s this one's", name, apart(theirs.Sub(wall))))
			marks = append(marks, name)
		}
	}
	if c.against {
		texts = append(texts, fmt.Sprintf("what is agreed on is %s this machine's", apart(agreed.Sub(wall))))
		marks = append(marks, "against")
	} else if len(texts) > 0 {
		texts = append(texts, "what is agreed on is what this machine says")
	}
	mark := strings.Join(marks, " ")
	is = mark != c.toldOf
	c.toldOf = mark
	return strings.Join(texts, "; "), is
}

// fault says that this machine's clock is wrong as far as others know.
func (c *siteClock) fault() error {
	agreed, wall := c.both()
	if near(agreed, wall) {
		return nil
	}
	return fmt.Errorf("this machine's clock is %s what the controllers agree on, which is %s: policy, tokens and certificates go by that; set the clock right (chronyc makestep)",
		apart(wall.Sub(agreed)), agreed.UTC().Format(time.RFC3339))
}

// apart tells a difference.
func apart(d time.Duration) string {
	by := cmp.Or(d.Abs().Round(time.Second), time.Second)
	if d < 0 {
		return by.String() + " behind"
	}
	return by.String() + " ahead of"
}

var (
	clockOffDesc = prometheus.NewDesc("bocage_controller_clock_offset_seconds", "By how much this machine's clock is ahead of what the controllers of the site agree on.", nil, nil)
	othersDesc   = prometheus.NewDesc("bocage_controller_others", "Other controllers of the site that live.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *siteClock) Describe(out chan<- *prometheus.Desc) { out <- clockOffDesc; out <- othersDesc }

// Collect implements prometheus.Collector.
func (c *siteClock) Collect(out chan<- prometheus.Metric) {
	agreed, wall := c.both()
	c.mu.Lock()
	_, even := c.read()
	living := len(c.living(even))
	c.mu.Unlock()
	out <- prometheus.MustNewConstMetric(clockOffDesc, prometheus.GaugeValue, wall.Sub(agreed).Seconds())
	out <- prometheus.MustNewConstMetric(othersDesc, prometheus.GaugeValue, float64(living))
}
