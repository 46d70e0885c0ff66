// Package pump is the queue between an engine that must not wait and a reader of
// a watch who may be slow. It promises order, a bound, and that what the reader
// gets before the end are whole revisions. It never drops a change in silence:
// past the bound the watch ends with store.ErrCompacted.
package pump

import (
	"context"
	"fmt"
	"sync"

	"bocage.dev/bocage/store"
)

// Pump is a running watch; with a Progress of its engine's it is a store.Watch.
type Pump struct {
	events chan store.Event
	ready  chan struct{} // holds a token when queue or ended changed

	mu     sync.Mutex // guards the fields below
	queue  []store.Event
	taken  int // so many at the head are on their way to the reader
	bytes  int
	ended  bool
	err    error
	result error // what Err returns; set before events is closed
}

// Start returns a pump that runs until ctx ends or [Pump.End] is called. stopped,
// which may be nil, is called once when it has ended.
func Start(ctx context.Context, stopped func()) *Pump {
	p := &Pump{events: make(chan store.Event, 16), ready: make(chan struct{}, 1)}
	go func() {
		p.run(ctx)
		if stopped != nil {
			stopped()
		}
		close(p.events)
	}()
	return p
}

// Push queues the changes of one revision. It returns false if the pump takes no
// more: it has ended, or does so now because the reader is too slow.
func (p *Pump) Push(events ...store.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	if p.ended {
		return false
	}
	if len(events) == 1 && events[0].Progress && len(p.queue) > p.taken && p.queue[len(p.queue)-1].Progress {
		p.queue[len(p.queue)-1] = events[0] // a reader who is behind needs the last of them only
		return true
	}
	// What fits is a matter of what waits: one revision alone always does.
	if len(p.queue) >= store.MaxBacklog || p.bytes >= store.MaxBacklogBytes {
		p.ended = true
		p.err = fmt.Errorf("%w: the reader of the watch let %d changes wait", store.ErrCompacted, len(p.queue))
		return false
	}
	p.queue = append(p.queue, events...)
	if last := &p.queue[len(p.queue)-1]; !last.Progress {
		last.Last = true
	}
	for _, e := range events {
		p.bytes += size(e)
	}
	return true
}

// End lets the reader have what is queued, then closes with err.
func (p *Pump) End(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	if !p.ended {
		p.ended, p.err = true, err
	}
}

// Events implements store.Watch.
func (p *Pump) Events() <-chan store.Event { return p.events }

// Err implements store.Watch.
func (p *Pump) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result
}

func (p *Pump) wake() {
	select {
	case p.ready <- struct{}{}:
	default:
	}
}

func (p *Pump) run(ctx context.Context) {
	for {
		batch, last, err := p.take()
		for _, e := range batch {
			select {
			case p.events <- e:
			case <-ctx.Done():
				p.End(nil)
				return
			}
			p.sent(e)
		}
		if last {
			p.mu.Lock()
			if ctx.Err() == nil {
				p.result = err
			}
			p.mu.Unlock()
			return
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-p.ready:
		case <-ctx.Done():
			p.End(nil)
			return
		}
	}
}

// take copies some of the queue's head, which stays counted until it is sent.
func (p *Pump) take() (batch []store.Event, last bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch = append(batch, p.queue[:min(len(p.queue), 64)]...)
	p.taken = len(batch)
	return batch, p.ended && len(batch) == len(p.queue), p.err
}

func (p *Pump) sent(e store.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue[0] = store.Event{} // for the collector
	p.queue = p.queue[1:]
	p.taken--
	p.bytes -= size(e)
}

// size is what an event holds in memory, about.
func size(e store.Event) int { return len(e.Key) + len(e.Value) + len(e.Previous) + 96 }
