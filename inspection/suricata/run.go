package suricata

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
)

// How the engine's life is judged.
const (
	probeInterval  = 20 * time.Millisecond
	hangPatience   = 50 * time.Millisecond // of silence, while it waits for nothing that it lacks
	hangBeats      = 2                     // in a row, on time, that find it so
	starvePatience = time.Second           // of silence, while it is short of CPU
	firstPatience  = time.Second           // until a first word about it is due
	steadyAnswers  = 3                     // probes in a row, each direction, make it up
	hangLimit      = 5 * time.Second       // down and running: it is replaced
	steadyUp       = 30 * time.Second      // up so long, it is no more suspected of crashing again

	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
)

// Counters tell what happened since this agent holds the engine.
type Counters struct {
	Events    uint64 // reported
	Malformed uint64 // lines of the event log that could not be read
	Crashes   uint64 // the process ended
	Hangs     uint64 // it ran and passed nothing
	Restarts  uint64 // processes started after the first
}

type counters struct{ events, malformed, crashes, hangs, restarts atomic.Uint64 }

// Counters returns the counts as they are.
func (e *Engine) Counters() Counters {
	c := &e.counters
	return Counters{c.events.Load(), c.malformed.Load(), c.crashes.Load(), c.hangs.Load(), c.restarts.Load()}
}

// Run reports what the engine finds and whether it is up, and starts it again
// when it is not, until ctx ends; then it closes the Engine and returns nil. The
// first call of state comes within about a second: until then, what the
// dataplane was told last may stand. Neither function is called by two at a
// time; while report does not return, events wait in the log, and once ctx has
// ended it must return.
//
// It returns an error only if it cannot go on: [ErrSteering] asks for a new Start.
func (e *Engine) Run(ctx context.Context, report func(bocage.InspectionEvent), state func(up bool)) error {
	defer e.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg        sync.WaitGroup
		followErr error
	)
	wg.Go(func() {
		defer cancel()
		followErr = e.tail.follow(ctx, func(line []byte) { e.reportLine(line, report) })
	})
	err := e.supervise(ctx, state)
	cancel()
	wg.Wait()
	return errors.Join(err, followErr)
}

func (e *Engine) reportLine(line []byte, report func(bocage.InspectionEvent)) {
	r, err := decode(line)
	if err == nil {
		var event bocage.InspectionEvent
		var ok bool
		if event, ok, err = r.event(e.profileName); ok {
			e.counters.events.Add(1)
			report(event)
		}
	}
	if err != nil {
		e.counters.malformed.Add(1)
		e.log.Warn("inspection event cannot be read", slog.Any("error", err))
	}
}

// profileName names a profile by its number. A flow may outlive its profile by
// the time that its events take; then the number must do.
func (e *Engine) profileName(number uint16) string {
	if names := e.names.Load(); names != nil {
		if name, ok := (*names)[number]; ok {
			return name
		}
	}
	return "profile " + strconv.Itoa(int(number))
}

// supervise keeps an engine running and says whether it is up.
func (e *Engine) supervise(ctx context.Context, state func(up bool)) error {
	v := &vigil{engine: e, state: state, since: time.Now()}
	e.prober.reset()
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		p := e.running()
		if p == nil || !p.alive() {
			v.crashed(p)
			if err := e.restart(ctx, v.nextBackoff()); err != nil && ctx.Err() == nil {
				e.log.Error("inspection engine does not start, trying again", slog.Any("error", err))
			}
			v.restarted(time.Now())
		}
		if ctx.Err() != nil {
			return nil
		}
		if p = e.running(); p == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.gone:
			continue
		case <-ticker.C:
		}
		now := time.Now()
		if err := e.prober.beat(now); err != nil {
			v.down("its links are gone")
			return err
		}
		v.judge(now, p)
	}
}

// vigil is what is known of the engine's life.
type vigil struct {
	engine *Engine
	state  func(up bool)
	told   bool      // state was called
	up     bool      // as told
	since  time.Time // when it went up or down, or was started
	last   time.Time // beat
	silent int       // beats in a row that found it hanging
	delay  time.Duration
}

// judge looks at one beat of probes.
func (v *vigil) judge(now time.Time, p *process) {
	e := v.engine
	silence := e.prober.silence(now)
	v.suspect(now, silence, p)
	switch {
	case v.up && v.silent >= hangBeats:
		e.counters.hangs.Add(1)
		e.log.Error("inspection engine hangs", slog.Duration("silence", silence))
		v.down("it hangs")
		v.since = now
		e.prober.reset()
	case !v.up && e.prober.answered() >= steadyAnswers:
		if err := e.settle(); err != nil {
			e.log.Error("inspection engine refuses its profiles and is ended", slog.Any("error", err))
			v.end(p)
			return
		}
		v.raise(now)
	case !v.up && !v.told && now.Sub(v.since) > firstPatience:
		v.down("it passes nothing")
	case !v.up && now.Sub(v.since) > hangLimit:
		e.log.Error("inspection engine still hangs and is ended", slog.Duration("after", now.Sub(v.since)))
		v.end(p)
	case v.up && now.Sub(v.since) > steadyUp:
		v.delay = 0
	}
}

// suspect counts the beats that found the engine hanging. A beat that comes late
// finds nothing: what kept this agent from running may have kept the engine.
func (v *vigil) suspect(now time.Time, silence time.Duration, p *process) {
	late := now.Sub(v.last) > 2*probeInterval
	v.last = now
	switch {
	case silence <= hangPatience:
		v.silent = 0
	case late || silence < starvePatience && p.starved():
	default:
		v.silent++
	}
}

func (v *vigil) raise(now time.Time) {
	v.up, v.told, v.since, v.silent = true, true, now, 0
	v.engine.log.Info("inspection engine is up")
	v.state(true)
}

func (v *vigil) down(why string) {
	if v.told && !v.up {
		return
	}
	v.up, v.told = false, true
	v.engine.log.Error("inspection engine is down", slog.String("why", why))
	v.state(false)
}

// end kills a process that is of no use; the next round starts another.
func (v *vigil) end(p *process) {
	if err := p.kill(killPatience); err != nil {
		v.engine.log.Error("ending the inspection engine goes wrong", slog.Any("error", err))
		v.since = time.Now()
	}
}

func (v *vigil) crashed(p *process) {
	if p != nil {
		v.engine.counters.crashes.Add(1)
	}
	v.down("its process ended")
}

func (v *vigil) restarted(now time.Time) {
	v.since = now
	v.engine.prober.reset()
}

// nextBackoff is how long to wait before a start: not at all the first time,
// then longer and longer.
func (v *vigil) nextBackoff() time.Duration {
	delay := v.delay
	v.delay = min(max(2*v.delay, firstBackoff), lastBackoff)
	return delay
}

// restart replaces a process that has ended.
func (e *Engine) restart(ctx context.Context, delay time.Duration) error {
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	old := e.process
	e.process = nil
	e.mu.Unlock()
	if old != nil {
		old.release()
	}
	e.counters.restarts.Add(1)
	return e.launch(ctx)
}

// settle makes sure of the profiles before the engine counts as up. A Load that
// is at it does the same.
func (e *Engine) settle() error {
	if !e.applying.TryLock() {
		return nil
	}
	defer e.applying.Unlock()
	err := e.converge()
	if errors.Is(err, errUnreachable) {
		return nil // it will be judged by its probes
	}
	return err
}
