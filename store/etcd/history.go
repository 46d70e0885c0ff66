package etcd

import (
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// history watches that a cluster only goes on. One that was restored from a backup, or
// is another one altogether, goes back: what this process knows of it may never have
// been there, and revisions name other things than they did. It is of no use any more
// then, since whoever goes on by what it knows would undo the restoration, or mix both.
//
// What is read and written here is answered with a revision that is not below that of
// any answer that was there before it was asked for. So one that is below has no other
// reason.
type history struct {
	seen    atomic.Int64  // the highest revision of an answer
	cluster atomic.Uint64 // 0: not known yet
	once    sync.Once
	why     atomic.Pointer[string]
	failed  chan struct{} // closed with why
}

func newHistory() *history { return &history{failed: make(chan struct{})} }

// far is how far the cluster was, before it is asked something. An embedded server has
// no history, and is what it is.
func (h *history) far() int64 {
	if h == nil {
		return 0
	}
	return h.seen.Load()
}

// follows notes how far an answer is, and refuses one that is of another history.
func (h *history) follows(before int64, header *etcdserverpb.ResponseHeader) error {
	if h == nil || header == nil {
		return nil
	}
	if is := header.ClusterId; is != 0 && !h.cluster.CompareAndSwap(0, is) && h.cluster.Load() != is {
		h.end(fmt.Sprintf("it is another cluster (%x) than it was (%x)", is, h.cluster.Load()))
	}
	if header.Revision < before {
		h.end(fmt.Sprintf("it was at revision %d and is at %d", before, header.Revision))
	}
	for seen := h.seen.Load(); seen < header.Revision && !h.seen.CompareAndSwap(seen, header.Revision); {
		seen = h.seen.Load()
	}
	return h.failure()
}

func (h *history) end(why string) {
	h.once.Do(func() {
		h.why.Store(&why)
		close(h.failed)
	})
}

func (h *history) failure() error {
	if h == nil {
		return nil
	}
	why := h.why.Load()
	if why == nil {
		return nil
	}
	return fmt.Errorf("etcd is not what this process knows, as after it was restored from a backup: %s: it has to be read anew, from a start", *why)
}
