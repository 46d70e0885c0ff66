package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	renewRetryFirst = time.Second
	renewRetryMost  = time.Minute
	// renewLook is how often the wall clock is looked at: a machine that was
	// suspended or whose clock was set must not oversleep.
	renewLook = time.Minute
)

// Keeper keeps an SVID fresh: from half of its life on it asks for a new one,
// with a new key, until it gets it.
type Keeper struct {
	current atomic.Pointer[SVID]
	renew   func(ctx context.Context, csr []byte) (chainPEM []byte, err error)
	adopt   func(*SVID) error
	logger  *slog.Logger
}

// NewKeeper makes a keeper of an SVID. renew sends a certificate request to
// whoever issues and returns the chain (PEM). adopt, which may be nil, is called
// with every new SVID before it is used, to save it; if it fails the SVID is used
// nevertheless and the fault logged.
func NewKeeper(svid *SVID, renew func(ctx context.Context, csr []byte) (chainPEM []byte, err error), adopt func(*SVID) error, logger *slog.Logger) *Keeper {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{renew: renew, adopt: adopt, logger: logger}
	k.current.Store(svid)
	return k
}

// SVID returns the current one.
func (k *Keeper) SVID() *SVID { return k.current.Load() }

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	retry := renewRetryFirst
	for {
		wait := time.Until(k.SVID().RenewAt()) // by the wall clock: certificates know no other
		if wait <= 0 {
			if err := k.once(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				k.logger.Warn("identity not renewed", "id", k.SVID().ID(), "expires", k.SVID().Expires(), "error", err)
				wait = retry/2 + rand.N(retry/2)
				retry = min(2*retry, renewRetryMost)
			} else {
				// Even if the issuer's clock is far behind and half is over already.
				wait, retry = renewRetryFirst, renewRetryFirst
			}
		}
		timer := time.NewTimer(min(wait, renewLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func (k *Keeper) once(ctx context.Context) error {
	key, csr, err := NewKey()
	if err != nil {
		return err
	}
	chainPEM, err := k.renew(ctx, csr)
	if err != nil {
		return fmt.Errorf("ask for a certificate: %w", err)
	}
	fresh, err := NewSVID(key, chainPEM)
	if err != nil {
		return fmt.Errorf("take the issued certificate: %w", err)
	}
	old := k.SVID()
	if fresh.ID() != old.ID() {
		return fmt.Errorf("take the issued certificate: it names %s instead of %s", fresh.ID(), old.ID())
	}
	if !fresh.Expires().After(time.Now()) {
		return fmt.Errorf("take the issued certificate: %w", x509.CertificateInvalidError{Cert: fresh.chain[0], Reason: x509.Expired})
	}
	if k.adopt != nil {
		if err := k.adopt(fresh); err != nil {
			k.logger.Error("identity not saved", "id", fresh.ID(), "error", err)
		}
	}
	k.current.Store(fresh)
	k.logger.Info("identity renewed", "id", fresh.ID(), "expires", fresh.Expires())
	return nil
}
