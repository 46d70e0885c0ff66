package policy

import (
	"container/list"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// givenRows bounds what is remembered of what hosts were given, in rows of their own:
// some 100 MB. Hosts that are forgotten get a whole ruleset next time.
const givenRows = 4 << 20

// givenBook remembers what each host has and what it was given last, which it may
// never have got, to tell the next ruleset by how it differs.
type givenBook struct {
	mu    sync.Mutex // guards what follows
	hosts map[string]*list.Element
	order list.List // of *given, the longest unused first
	rows  int
}

// given is what one host was given: it had the first when it was given the second.
type given struct{ has, last *bocage.Ruleset }

func (g *given) rows() int {
	if g.has == nil || g.has == g.last {
		return rowsOf(g.last)
	}
	return rowsOf(g.has) + rowsOf(g.last)
}

// of returns what a host has as a generation, or nil. It has got it then.
func (g *givenBook) of(host string, generation uint64) *bocage.Ruleset {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.hosts[host]
	if e == nil {
		return nil
	}
	entry := e.Value.(*given)
	switch generation {
	case entry.last.Generation:
		g.rows -= entry.rows()
		entry.has = entry.last
		g.rows += entry.rows()
	case generationOf(entry.has):
	default:
		return nil
	}
	g.order.MoveToBack(e)
	return entry.has
}

func generationOf(rs *bocage.Ruleset) uint64 {
	if rs == nil {
		return 0
	}
	return rs.Generation
}

// note remembers what a host is given that has a ruleset, or of which that is not known.
func (g *givenBook) note(has, next *bocage.Ruleset) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hosts == nil {
		g.hosts = map[string]*list.Element{}
	}
	if e := g.hosts[next.Host]; e != nil {
		g.forget(e)
	}
	entry := &given{has, next}
	g.hosts[next.Host] = g.order.PushBack(entry)
	for g.rows += entry.rows(); g.rows > givenRows && g.order.Len() > 1; {
		g.forget(g.order.Front())
	}
}

// forget takes an entry out; mu is held.
func (g *givenBook) forget(e *list.Element) {
	entry := g.order.Remove(e).(*given)
	g.rows -= entry.rows()
	delete(g.hosts, entry.last.Host)
}

// rowsOf counts what a host's ruleset has of its own, a little for the entry itself
// included. Peers and groups are those of the whole.
func rowsOf(rs *bocage.Ruleset) int {
	return 64 + len(rs.Rules) + len(rs.Reasons) + 8*len(rs.Decisions) + 8*len(rs.Ports)
}

// enforced signs what a host is to enforce: how it differs from what it has as
// generation base, where that is known and little, else the whole.
func (p *Policy) enforced(o *outcome, host string, number uint64, confirmBy time.Time, base uint64) (whole, amendment []byte, err error) {
	e, err := o.encoder()
	if err != nil {
		return nil, nil, err
	}
	cut := e.numbered(host, number, confirmBy)
	before := p.given.of(host, base)
	p.given.note(before, cut)
	if before != nil {
		if a, err := bocage.Difference(before, cut); err == nil && a.Size() <= (len(cut.Peers)+len(cut.Rules))/4+64 {
			payload, err := encodeAmendment(a)
			if err != nil {
				return nil, nil, err
			}
			amendment, err = p.signed(bocage.SignedAmendment, host, payload)
			return nil, amendment, err
		}
	}
	payload, err := e.encode(cut)
	if err != nil {
		return nil, nil, err
	}
	whole, err = p.signed(bocage.SignedRuleset, host, payload)
	return whole, nil, err
}

// remake makes again what a host was given by another controller, or by the process
// before, so that what comes next need not be sent whole.
func (p *Policy) remake(host string, q Question, at store.Revision) {
	s := p.served.Load()
	if q.Base == 0 || s == nil || s.revision != at || s.record.Hosts[host][0] != q.Base || p.given.of(host, q.Base) != nil {
		return
	}
	enforced, _ := s.of(host)
	if enforced == nil {
		return
	}
	if e, err := enforced.encoder(); err == nil {
		p.given.note(nil, e.numbered(host, q.Base, s.confirmBy(host)))
	}
}
