package etcd

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"bocage.dev/bocage/store"
)

// fenceName ends the keys that are written only so that a watch sees them: what came
// before such a change came before it on the watch, too. They are shown to nobody.
const fenceName = "\x00fence"

// removePatience is how long etcd has to delete one, which Close may have to wait for.
const removePatience = 3 * time.Second

func isFence(key []byte) bool { return bytes.HasSuffix(key, []byte(fenceName)) }

// fences are the keys that the watches of this process may have to write, by what
// they watch. What is asked for while one is being written goes together.
type fences struct {
	mu  sync.Mutex // guards all and what is in it
	all map[string]*fence
}

type fence struct {
	watches int
	writing bool
	tried   bool           // the key may be there
	written store.Revision // 0: never
	next    *round         // what is asked for and not being written yet
}

// round is one write that some wait for.
type round struct {
	done chan struct{} // closed with err
	err  error
}

func (f *fences) join(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[string]*fence{}
	}
	if f.all[key] == nil {
		f.all[key] = &fence{}
	}
	f.all[key].watches++
}

// leave removes the fence of what nobody watches any more. One that a process left
// behind when it was killed takes a key, and no more.
func (s *Store) leave(key string) {
	s.fences.mu.Lock()
	f := s.fences.all[key]
	f.watches--
	last := f.watches == 0
	if last {
		delete(s.fences.all, key)
	}
	remove := last && f.tried && !f.writing // who is writing removes it
	s.fences.mu.Unlock()
	if remove {
		s.removeFence(key)
	}
}

// removeFence deletes a fence, also while the store is being closed, which waits.
func (s *Store) removeFence(key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), removePatience)
	defer cancel()
	_, _ = s.client.Delete(ctx, key+fenceName)
}

// fence sees to it that a fence of at least a revision comes to a watch that the one
// of another revision has come to.
func (s *Store) fence(ctx context.Context, key string, least, come store.Revision) error {
	s.fences.mu.Lock()
	f := s.fences.all[key]
	if f == nil || least > 0 && f.written >= max(least, come+1) {
		s.fences.mu.Unlock()
		return nil // nobody watches, or it is on its way
	}
	r := f.next
	if r == nil {
		r = &round{done: make(chan struct{})}
		f.next = r
		if !f.writing {
			if !s.begin(func() { s.writeFences(key, f) }) {
				f.next = nil
				s.fences.mu.Unlock()
				return ErrClosed
			}
			f.writing = true
		}
	}
	s.fences.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeFences writes one after another as long as somebody asks.
func (s *Store) writeFences(key string, f *fence) {
	for {
		s.fences.mu.Lock()
		r := f.next
		f.next = nil
		f.writing = r != nil
		f.tried = f.tried || f.writing
		left := f.tried && f.watches == 0
		s.fences.mu.Unlock()
		if r == nil {
			if left {
				s.removeFence(key)
			}
			return
		}
		at, err := s.writeFence(key)
		s.fences.mu.Lock()
		f.written = max(f.written, at)
		s.fences.mu.Unlock()
		r.err = err
		close(r.done)
	}
}

func (s *Store) writeFence(key string) (store.Revision, error) {
	ctx, cancel := s.patient(s.ctx)
	defer cancel()
	before := s.history.far()
	response, err := s.client.Put(ctx, key+fenceName, "")
	if err == nil {
		err = s.history.follows(before, response.Header)
	}
	if err != nil {
		return 0, fmt.Errorf("write a fence: %w", s.explain(s.ctx, err))
	}
	return store.Revision(response.Header.Revision), nil
}
