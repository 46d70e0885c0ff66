package container

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// contents is what is known of a runtime while it is followed.
type contents struct {
	containers map[string]Container
	networks   []Network
	pods       []Pod
	left       int
	refused    map[string]int // how often, by ID
}

func (r *Runtime) inventory(all *contents) Inventory {
	inventory := Inventory{Product: r.product, Left: all.left, Networks: all.networks, Pods: all.pods}
	for _, c := range all.containers {
		inventory.Containers = append(inventory.Containers, c)
	}
	slices.SortFunc(inventory.Containers, func(a, b Container) int { return cmp.Compare(a.ID, b.ID) })
	return inventory
}

// gather is how long events are collected before what they concern is asked for:
// a container's start is several of them.
const gather = 2 * time.Millisecond

// Follow lists everything and calls each with it, and again whenever something has
// changed, until the connection breaks or ctx ends. Whoever calls it again after a
// while starts from a full list: nothing is missed for good.
func (r *Runtime) Follow(ctx context.Context, each func(Inventory)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer r.Close()
	// Before the list, so that nothing falls between.
	reader, closer, err := r.connect(ctx)
	if err != nil {
		return fmt.Errorf("follow containers of %s: %w", r.socket, err)
	}
	defer closer()
	news := make(chan event, 1<<10)
	broken := make(chan error, 1)
	go func() { broken <- read(ctx, reader, news) }()
	err = r.follow(ctx, news, broken, each)
	cancel()
	closer() // ends the reader, which is waited for
	for range news {
	}
	return fmt.Errorf("follow containers of %s: %w", r.socket, err)
}

// connect opens the stream of events within the time that any answer may take.
func (r *Runtime) connect(ctx context.Context) (*bufio.Reader, func(), error) {
	reader, body, err := r.events(ctx)
	if err != nil {
		return nil, nil, err
	}
	return reader, func() { body.Close() }, nil
}

func (r *Runtime) follow(ctx context.Context, news <-chan event, broken <-chan error, each func(Inventory)) error {
	all, err := r.list(ctx)
	if err != nil {
		return err
	}
	each(r.inventory(all))
	for {
		patience := quietAtMost
		if len(all.refused) > 0 {
			patience = askAgain
		}
		w, err := r.wait(ctx, news, broken, patience)
		switch {
		case errors.Is(err, errQuiet) && len(all.refused) > 0:
			w = work{containers: map[string]bool{}}
			for id := range all.refused {
				w.containers[id] = true
			}
			err = r.take(ctx, all, w)
		case errors.Is(err, errQuiet):
			all, err = r.list(ctx)
		case err == nil:
			err = r.take(ctx, all, w)
		}
		if err != nil {
			return err
		}
		each(r.inventory(all))
	}
}

var errQuiet = errors.New("nothing happened")

// wait waits for events, and returns errQuiet if there are none for a time.
func (r *Runtime) wait(ctx context.Context, news <-chan event, broken <-chan error, patience time.Duration) (work, error) {
	quiet := time.NewTimer(patience)
	defer quiet.Stop()
	select {
	case <-ctx.Done():
		return work{}, ctx.Err()
	case err := <-broken:
		return work{}, err
	case <-quiet.C:
		return work{}, errQuiet
	case first, open := <-news:
		if !open {
			return work{}, <-broken
		}
		return r.collect(ctx, first, news), nil
	}
}

// work is what a handful of events asks for.
type work struct {
	containers     map[string]bool
	networks, pods bool
}

func (w *work) add(e event) {
	if e.container != "" {
		w.containers[e.container] = true
	}
	w.networks = w.networks || e.networks
	w.pods = w.pods || e.pods
}

// collect takes what comes within a moment after the first event.
func (r *Runtime) collect(ctx context.Context, first event, news <-chan event) work {
	w := work{containers: map[string]bool{}}
	w.add(first)
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		select {
		case e, open := <-news:
			if !open {
				return w
			}
			w.add(e)
		case <-timer.C:
			return w
		case <-ctx.Done():
			return w
		}
	}
}

func (r *Runtime) take(ctx context.Context, all *contents, w work) error {
	if w.networks {
		if err := r.listNetworks(ctx, all); err != nil {
			return err
		}
	}
	if w.pods {
		if err := r.listPods(ctx, all); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(w.containers)) {
		if err := r.inspect(ctx, all, id); err != nil {
			return err
		}
	}
	return nil
}

var errLongEvent = errors.New("an event is longer than this reads")

// read hands on events until the stream ends. While nobody takes them the runtime
// waits, and so loses none.
func read(ctx context.Context, from *bufio.Reader, news chan<- event) error {
	defer close(news)
	for {
		line, err := readLine(from)
		if err != nil {
			return fmt.Errorf("stream of events: %w", err)
		}
		if len(line) == 0 {
			continue
		}
		e, err := parseEvent(line)
		if err != nil {
			return err
		}
		if e == (event{}) {
			continue
		}
		select {
		case news <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readLine reads up to a line's end.
func readLine(from *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := from.ReadSlice('\n')
		if len(line)+len(part) > mostEvent {
			return nil, errLongEvent
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
}
