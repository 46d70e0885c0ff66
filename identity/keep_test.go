package identity_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage/identity"
)

func TestKeeperRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		began := time.Now()
		var renewed, adopted []time.Duration
		k := identity.NewKeeper(issue(t, a, "/agent/h1"), func(_ context.Context, csr []byte) ([]byte, error) {
			renewed = append(renewed, time.Since(began))
			return a.Issue("/agent/h1", csr, time.Hour)
		}, func(*identity.SVID) error {
			adopted = append(adopted, time.Since(began))
			return errors.New("the disk is full") // does not keep it from being used
		}, nil)
		first := k.SVID()
		ctx, stop := context.WithTimeout(t.Context(), 3*time.Hour)
		defer stop()
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
		// Certificates know whole seconds, and the clock is looked at every minute.
		if len(renewed) < 5 || len(renewed) > 6 || renewed[0] < 29*time.Minute || renewed[0] > 31*time.Minute || len(adopted) != len(renewed) {
			t.Errorf("renewed after %v and saved after %v", renewed, adopted)
		}
		if k.SVID().Serial() == first.Serial() || k.SVID().Expires().Before(time.Now()) {
			t.Errorf("the current identity expires %s, now is %s", k.SVID().Expires(), time.Now())
		}
	})
}

func TestKeeperTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		began := time.Now()
		attempts := 0
		outage := 50 * time.Minute
		k := identity.NewKeeper(issue(t, a, "/agent/h1"), func(_ context.Context, csr []byte) ([]byte, error) {
			attempts++
			if time.Since(began) < outage {
				return nil, errors.New("no controller")
			}
			return a.Issue("/agent/h1", csr, time.Hour)
		}, nil, nil)
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
		// Twenty minutes of an outage, with at most a minute between attempts.
		if attempts < 20 || attempts > 60 {
			t.Errorf("%d attempts in 20 minutes", attempts)
		}
		if !k.SVID().Expires().After(began.Add(90 * time.Minute)) {
			t.Errorf("the identity was not renewed: it expires %s after the start", k.SVID().Expires().Sub(began))
		}
	})
}

func TestKeeperRefusesAnotherName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		answers := []func(csr []byte) ([]byte, error){
			func(csr []byte) ([]byte, error) { return a.Issue("/agent/h2", csr, time.Hour) },
			func([]byte) ([]byte, error) { return []byte("nonsense"), nil },
			func([]byte) ([]byte, error) { return nil, nil },
			func([]byte) ([]byte, error) { // a certificate for another key
				_, csr, err := identity.NewKey()
				if err != nil {
					return nil, err
				}
				return a.Issue("/agent/h1", csr, time.Hour)
			},
		}
		attempt := 0
		first := issue(t, a, "/agent/h1")
		k := identity.NewKeeper(first, func(_ context.Context, csr []byte) ([]byte, error) {
			attempt++
			return answers[attempt%len(answers)](csr)
		}, nil, nil)
		ctx, stop := context.WithTimeout(t.Context(), 55*time.Minute)
		defer stop()
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
		if attempt < len(answers) || k.SVID() != first {
			t.Errorf("after %d attempts the identity is %s %s", attempt, k.SVID().ID(), k.SVID().Serial())
		}
	})
}
