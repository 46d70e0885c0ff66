package lake

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/account"
	"bocage.dev/bocage/stream"
)

const (
	// rereads is how many messages before the newest that landed a restart reads
	// again, to know batches that a sender appended twice.
	rereads = 512
	// maxBoots bounds for how many senders duplicates are known.
	maxBoots  = 8192
	firstWait = 100 * time.Millisecond
	longWait  = 10 * time.Second
)

// ErrNotLanding is returned by Flush while nothing lands.
var ErrNotLanding = errors.New("the lake is not landing")

// flushRequest asks that everything up to a message lands now.
type flushRequest struct {
	upTo uint64 // sequence of the log
	done chan struct{}
}

// Land brings the log into the lake until ctx ends, which is the only error that
// it returns but for a second Land on the same lake. What cannot be written waits
// in the log.
func (l *Lake) Land(ctx context.Context, log stream.Log, open func(envelope []byte) (*bocage.Batch, error)) error {
	l.mu.Lock()
	if l.landing || l.closed {
		l.mu.Unlock()
		return errors.New("the lake lands already, or is closed")
	}
	l.landing = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.landing = false
	}()
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := &lander{lake: l, log: log, open: open, in: make(chan message, 16), batches: map[string]*account.Window{}}
	if err := n.begin(ctx); err != nil {
		return err
	}
	group.Go(func() { n.read(ctx) })
	group.Go(func() { l.tidy(ctx) })
	return n.run(ctx)
}

// Flush returns when everything that is in the log now has landed.
func (l *Lake) Flush(ctx context.Context) error {
	l.mu.Lock()
	landing := l.landing
	l.mu.Unlock()
	if !landing {
		return ErrNotLanding
	}
	request := flushRequest{done: make(chan struct{})}
	select {
	case l.flushes <- request:
	case <-ctx.Done():
		return l.waits(ctx)
	}
	select {
	case <-request.done:
		return nil
	case <-ctx.Done():
		return l.waits(ctx)
	}
}

func (l *Lake) waits(ctx context.Context) error {
	if fault := l.Fault(); fault != nil {
		return fmt.Errorf("landing waits: %w", fault)
	}
	return ctx.Err()
}

// lander is one Land.
type lander struct {
	lake    *Lake
	log     stream.Log
	open    func([]byte) (*bocage.Batch, error)
	in      chan message
	start   uint64 // where reading begins, in the log's sequences
	base    uint64
	batches map[string]*account.Window
	order   []string // of batches, oldest first

	rows        *rows
	first, last uint64 // of rows, in the lake's sequences; last is also what was read
	waiting     []flushRequest
}

// message is one entry of the log, opened.
type message struct {
	sequence uint64
	time     time.Time
	batch    *bocage.Batch
	err      error
}

// begin finds where to read from. A log that is shorter than what has landed of it
// is another log: its messages come after those of the old one.
func (n *lander) begin(ctx context.Context) error {
	l := n.lake
	first, last, err := n.bounds(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	position, base := l.position, l.base
	l.mu.Unlock()
	if last+base < position {
		l.cfg.Logger.Warn("the log begins anew: its messages land after those of the old one", "last", last, "landed", position-base)
		base = position
		if err := l.retry(ctx, func() error { return l.writeState(state{Base: base}) }); err != nil {
			return err
		}
		l.mu.Lock()
		l.base = base
		l.mu.Unlock()
	}
	n.base, n.last, n.rows = base, position, newRows()
	n.start = position - base
	n.start -= min(n.start, rereads)
	n.start = max(n.start+1, first, 1)
	return nil
}

func (n *lander) bounds(ctx context.Context) (first, last uint64, err error) {
	err = n.lake.retry(ctx, func() error {
		first, last, err = n.log.Bounds(ctx)
		return err
	})
	return first, last, err
}

// retry tries something until it works, and says meanwhile why landing waits.
func (l *Lake) retry(ctx context.Context, try func() error) error {
	for wait := firstWait; ; wait = min(wait*2, longWait) {
		err := try()
		l.setFault(err)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.counts.failed.Add(1)
		l.cfg.Logger.Warn("landing waits", "error", err, "wait", wait)
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// read follows the log and opens batches, ahead of landing by a bounded number.
func (n *lander) read(ctx context.Context) {
	from, wait := n.start, firstWait
	for ctx.Err() == nil {
		err := n.log.Read(ctx, from, func(m stream.Message) error {
			wait = firstWait
			next := message{sequence: m.Sequence, time: m.Time}
			next.batch, next.err = n.open(m.Data)
			select {
			case n.in <- next:
				from = m.Sequence + 1
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, stream.ErrGone) {
			if first, _, bounds := n.log.Bounds(ctx); bounds == nil && first > from {
				n.lake.counts.gone.Add(first - from)
				n.lake.cfg.Logger.Error("messages left the log before they landed", "from", from, "to", first-1)
				from = first
				continue
			}
		}
		n.lake.cfg.Logger.Warn("read the log of events", "from", from, "error", err)
		if pause(ctx, wait) != nil {
			return
		}
		wait = min(wait*2, longWait)
	}
}

// run gathers and lands.
func (n *lander) run(ctx context.Context) error {
	tick := time.NewTicker(n.lake.cfg.FlushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = n.flush(context.WithoutCancel(ctx), false)
			return ctx.Err()
		case m := <-n.in:
			n.take(m)
			if n.rows.count >= n.lake.cfg.FlushRecords || n.answers() {
				if err := n.flush(ctx, true); err != nil {
					return err
				}
			}
		case request := <-n.lake.flushes:
			if err := n.request(ctx, request); err != nil {
				return err
			}
		case <-tick.C:
			if err := n.flush(ctx, true); err != nil {
				return err
			}
		}
	}
}

// take adds a message's records, unless its batch landed before.
func (n *lander) take(m message) {
	at := m.sequence + n.base
	counts := &n.lake.counts
	if m.err != nil {
		if at > n.last {
			counts.rejected.Add(1)
			n.last = at
		}
		return
	}
	window := n.window(m.batch.Source + " " + m.batch.Boot)
	outcome := window.Add(m.batch.Sequence)
	if at <= n.last {
		return // it has landed; only its number was wanted
	}
	if n.rows.count == 0 {
		n.first = at
	}
	n.last = at
	if outcome != account.Fresh {
		counts.duplicates.Add(1)
		return
	}
	offered := uint64(len(m.batch.Flows)/bocage.FlowEventSize + len(m.batch.Cadences)/bocage.CadenceSize + len(m.batch.Greetings) +
		len(m.batch.Inspections) + len(m.batch.Engagements))
	if len(m.batch.Flows)%bocage.FlowEventSize != 0 {
		offered++
	}
	if len(m.batch.Cadences)%bocage.CadenceSize != 0 {
		offered++
	}
	read := n.rows.add(m.batch, hostOf(m.batch.Source), m.time, n.lake.cfg.Name)
	counts.offered.Add(offered)
	counts.shed.Add(offered - uint64(read))
}

func (n *lander) window(key string) *account.Window {
	if w := n.batches[key]; w != nil {
		return w
	}
	if len(n.order) >= maxBoots {
		delete(n.batches, n.order[0])
		n.order = n.order[1:]
	}
	w := &account.Window{}
	n.batches[key] = w
	n.order = append(n.order, key)
	return w
}

// request notes up to where somebody wants everything landed.
func (n *lander) request(ctx context.Context, request flushRequest) error {
	_, last, err := n.bounds(ctx)
	if err != nil {
		return err
	}
	request.upTo = last + n.base
	n.waiting = append(n.waiting, request)
	if n.answers() {
		return n.flush(ctx, true)
	}
	return nil
}

// answers reports whether a flush would end somebody's wait.
func (n *lander) answers() bool {
	for _, request := range n.waiting {
		if request.upTo <= n.last {
			return true
		}
	}
	return false
}

// flush lands what was gathered, as often as it takes, or once.
func (n *lander) flush(ctx context.Context, again bool) error {
	if n.rows.count > 0 {
		land := func() error { return n.lake.land(n.rows, n.first, n.last) }
		var err error
		if again {
			err = n.lake.retry(ctx, land)
		} else if err = land(); err != nil {
			n.lake.cfg.Logger.Warn("the last records wait in the log", "error", err)
		}
		if err != nil {
			return err
		}
		n.lake.counts.landed.Add(uint64(n.rows.count))
		n.rows = newRows()
	}
	n.lake.mu.Lock()
	n.lake.passed = n.last
	n.lake.mu.Unlock()
	kept := n.waiting[:0]
	for _, request := range n.waiting {
		if request.upTo <= n.last {
			close(request.done)
		} else {
			kept = append(kept, request)
		}
	}
	n.waiting = kept
	return nil
}
