package policy

import (
	"container/list"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// deliveredRows bounds what is remembered of what hosts were given, in rows of about 24
// bytes: some 100 MB. Hosts that are forgotten get a whole ruleset next time.
const deliveredRows = 4 << 20

// deliveries remembers what each host has and what it was given last, which it may
// never have got, to tell the next ruleset by how it differs.
type deliveries struct {
	mu    sync.Mutex // guards what follows
	hosts map[string]*list.Element
	order list.List // of *delivery, the longest unused first
	rows  int
	// shared counts who holds a list that rulesets of one generation have together,
	// by its first element.
	shared map[any]sharedList
}

type sharedList struct{ holders, rows int }

// delivery is what one host was given: it had the first when it was given the second.
type delivery struct{ has, last *bocage.Ruleset }

// count counts what an entry holds, or (by -1) holds no longer; mu is held.
func (d *deliveries) count(entry *delivery, by int) {
	d.countOne(entry.last, by)
	if entry.has != nil && entry.has != entry.last {
		d.countOne(entry.has, by)
	}
}

// countOne counts a ruleset: what it has of its own with a little for the entry itself,
// and the peers and groups of the whole that it is cut of, which go when the last host
// that was given something of that whole is given something else.
func (d *deliveries) countOne(rs *bocage.Ruleset, by int) {
	d.rows += by * (64 + len(rs.Rules) + len(rs.Reasons) + 8*len(rs.Decisions) + 8*len(rs.Ports) + len(rs.Refused) + 8*len(rs.Names) + 8*len(rs.Decoys))
	if len(rs.Peers) > 0 {
		d.countShared(&rs.Peers[0], 3*len(rs.Peers), by)
	}
	if len(rs.Groups) > 0 {
		d.countShared(&rs.Groups[0], len(rs.Groups), by)
	}
}

func (d *deliveries) countShared(first any, rows, by int) {
	list, known := d.shared[first]
	if !known {
		list.rows = rows
		d.rows += rows
	}
	if list.holders += by; list.holders > 0 {
		d.shared[first] = list
		return
	}
	delete(d.shared, first)
	d.rows -= list.rows
}

// hasRoom reports whether another host can be remembered without forgetting one.
func (d *deliveries) hasRoom() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rows < deliveredRows*9/10
}

// of returns what a host has as a generation, or nil. It has got it then.
func (d *deliveries) of(host string, generation uint64) *bocage.Ruleset {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.hosts[host]
	if e == nil {
		return nil
	}
	entry := e.Value.(*delivery)
	switch generation {
	case entry.last.Generation:
		d.count(entry, -1)
		entry.has = entry.last
		d.count(entry, 1)
	case generationOf(entry.has):
	default:
		return nil
	}
	d.order.MoveToBack(e)
	return entry.has
}

func generationOf(rs *bocage.Ruleset) uint64 {
	if rs == nil {
		return 0
	}
	return rs.Generation
}

// note remembers what a host is given that has a ruleset, or of which that is not known.
func (d *deliveries) note(has, next *bocage.Ruleset) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hosts == nil {
		d.hosts, d.shared = map[string]*list.Element{}, map[any]sharedList{}
	}
	if e := d.hosts[next.Host]; e != nil {
		d.forget(e)
	}
	entry := &delivery{has, next}
	d.hosts[next.Host] = d.order.PushBack(entry)
	d.count(entry, 1)
	for d.rows > deliveredRows && d.order.Len() > 1 {
		d.forget(d.order.Front())
	}
}

// forget takes an entry out; mu is held.
func (d *deliveries) forget(e *list.Element) {
	entry := d.order.Remove(e).(*delivery)
	d.count(entry, -1)
	delete(d.hosts, entry.last.Host)
}

// enforced signs what a host is to enforce: how it differs from what it has as
// generation base, where that is known, little, and no larger than a message, else the
// whole.
func (p *Policy) enforced(a *Answer, o *outcome, host string, number uint64, confirmBy time.Time, q Question) error {
	made := madeOf(number, confirmBy)
	payload, noRoom := p.parcels.of(host, bocage.SignedRuleset, made)
	if payload != nil {
		return p.enclose(a, &a.Ruleset, bocage.SignedRuleset, host, made, payload, q)
	}
	before := p.deliveries.of(host, q.Base)
	if noRoom != nil && before == nil {
		return noRoom
	}
	e, err := o.encoder()
	if err != nil {
		return err
	}
	cut := e.numbered(host, number, confirmBy)
	p.deliveries.note(before, cut)
	if before != nil {
		if d, err := bocage.Difference(before, cut); err == nil && d.Size() <= (len(cut.Peers)+len(cut.Rules))/4+64 {
			payload, err := encodeAmendment(d)
			if err != nil {
				return err
			}
			if !isLarge(payload) {
				a.Amendment, err = p.signed(bocage.SignedAmendment, host, payload)
				return err
			}
			// Only whoever gave the ruleset before can make it: what every controller
			// can give in pieces is the whole.
		}
	}
	if noRoom != nil {
		return noRoom
	}
	if payload, err = e.encode(cut); err != nil {
		return err
	}
	return p.enclose(a, &a.Ruleset, bocage.SignedRuleset, host, made, payload, q)
}

// remake makes again what a host was given by another controller, or by the process
// before, so that what comes next need not be sent whole. No other host is forgotten
// for it: where there is no room for all, they would take turns with every question.
func (p *Policy) remake(host string, q Question, at store.Revision) {
	s := p.served.Load()
	if q.Base == 0 || s == nil || s.revision != at || s.record.Hosts[host][0] != q.Base || p.deliveries.of(host, q.Base) != nil || !p.deliveries.hasRoom() {
		return
	}
	enforced, _ := s.of(host)
	if enforced == nil {
		return
	}
	if e, err := enforced.encoder(); err == nil {
		p.deliveries.note(nil, e.numbered(host, q.Base, s.confirmBy(host)))
	}
}
