package policy

import (
	"container/list"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// deliveredRows bounds the remembered rulesets, in rows of about 24 bytes: some 100 MB.
// Hosts that are forgotten get a whole ruleset next time.
const deliveredRows = 4 << 20

// deliveries remembers, for each host, the ruleset that it has and the one that it was
// given last (which may not have arrived), so that the next one can be sent as an
// amendment.
type deliveries struct {
	mu    sync.Mutex // guards what follows
	hosts map[string]*list.Element
	order list.List // of *delivery, the longest unused first
	rows  int
	// shared counts the holders of each list that rulesets of one generation share, by the
	// list's first element.
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

// countOne counts a ruleset: its own lists, a little for the entry itself, and the peers
// and groups that it shares with other hosts' rulesets of the same generation. These are
// counted once, until the last holder is gone.
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

// of returns the ruleset that a host reports to have as a generation; nil if it is not
// remembered. It notes that the host has got it.
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

// note remembers that a host was given next. has is what it had before; nil if that is not
// known.
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

// enforced signs what a host is to enforce: an amendment of the ruleset that it has, if
// that ruleset is remembered and the amendment is small and fits into a message; else the
// whole ruleset.
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
			// Too large for a message, and only this controller could make its pieces: a
			// parcel has to be one that every controller can make.
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

// remake makes again the ruleset that a host was given by another controller, or by this
// one before a restart, so that the next one can be an amendment. It forgets no other host
// for that: if there is not room for all, hosts would displace each other all the time.
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
