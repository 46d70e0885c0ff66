package api

import (
	"sync"

	"golang.org/x/time/rate"
)

// limits bounds what one client and all clients together may ask.
type limits struct {
	perSecond rate.Limit
	maxWatch  int64 // of all, and of one person three quarters of that
	inFlight  chan struct{}
	large     chan struct{} // bodies of largeBody bytes and more

	mu      sync.Mutex // guards what follows
	buckets map[string]*rate.Limiter
	watches int64
	of      map[string]int64 // watches of a person
}

const (
	defaultRate    = 500
	defaultWatches = 10_000
	maxInFlight    = 256
	maxBuckets     = 10_000
	largeBody      = 1 << 20
	maxLarge       = 2
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
		inFlight: make(chan struct{}, maxInFlight), large: make(chan struct{}, maxLarge), buckets: map[string]*rate.Limiter{}, of: map[string]int64{},
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

// watch takes one of the places for watches; leave gives it back. Nobody gets so
// many that none are left for others.
func (l *limits) watch(person string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watches >= l.maxWatch || l.of[person] >= l.share() {
		return false
	}
	l.watches++
	l.of[person]++
	return true
}

// share is how many watches one person may have.
func (l *limits) share() int64 { return max(l.maxWatch-l.maxWatch/4, 1) }

// following counts the watches that are open.
func (l *limits) following() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watches
}

func (l *limits) leave(person string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watches--
	if l.of[person]--; l.of[person] == 0 {
		delete(l.of, person)
	}
}
