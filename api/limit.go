package api

import (
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// limits bounds what one client and all clients together may ask.
type limits struct {
	perSecond rate.Limit
	maxWatch  int64
	watches   atomic.Int64
	inFlight  chan struct{}
	large     chan struct{} // bodies of largeBody bytes and more

	mu      sync.Mutex // guards buckets
	buckets map[string]*rate.Limiter
}

const (
	defaultRate    = 500
	defaultWatches = 10_000
	maxInFlight    = 256
	maxBuckets     = 10_000
	largeBody      = 1 << 20
	maxLarge       = 4
)

func newLimits(perSecond float64, maxWatches int) *limits {
	if perSecond <= 0 {
		perSecond = defaultRate
	}
	if maxWatches <= 0 {
		maxWatches = defaultWatches
	}
	return &limits{
		perSecond: rate.Limit(perSecond), maxWatch: int64(maxWatches),
		inFlight: make(chan struct{}, maxInFlight), large: make(chan struct{}, maxLarge), buckets: map[string]*rate.Limiter{},
	}
}

// allow reports whether a client may make one more request now.
func (l *limits) allow(client string) bool {
	l.mu.Lock()
	bucket, ok := l.buckets[client]
	if !ok {
		if len(l.buckets) >= maxBuckets {
			l.forgetIdle()
		}
		bucket = rate.NewLimiter(l.perSecond, max(1, int(2*l.perSecond)))
		l.buckets[client] = bucket
	}
	l.mu.Unlock()
	return bucket.Allow()
}

// forgetIdle drops buckets that are full again, which change nothing, and all of
// them if none is.
func (l *limits) forgetIdle() {
	for client, bucket := range l.buckets {
		if bucket.Tokens() >= float64(bucket.Burst()) {
			delete(l.buckets, client)
		}
	}
	if len(l.buckets) >= maxBuckets {
		clear(l.buckets)
	}
}

// watch takes one of the places for watches; leave gives it back.
func (l *limits) watch() bool {
	if l.watches.Add(1) > l.maxWatch {
		l.watches.Add(-1)
		return false
	}
	return true
}

func (l *limits) leave() { l.watches.Add(-1) }
