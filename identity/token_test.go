package identity_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store/mem"
)

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		kept := mem.New()
		tokens := identity.Tokens{Store: kept, Bundle: newAuthority(t).Bundle()}
		create := func(path string, ttl time.Duration) string {
			token, err := tokens.Create(ctx, path, ttl)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		first, second, late := create("/agent/h1", time.Hour), create("/agent/h2", time.Hour), create("/agent/h3", time.Minute)
		entries, _, err := kept.List(ctx, "", "", 0, 0)
		if err != nil || len(entries) != 3 {
			t.Fatalf("the store holds %d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			for _, token := range []string{first, second, late} {
				if secret := strings.Split(token, ".")[1]; strings.Contains(e.Key+string(e.Value), secret) {
					t.Error("the store holds a token's secret")
				}
			}
		}
		time.Sleep(2 * time.Minute)
		tests := []struct {
			name, token, path string
			err               error
		}{
			{"good", first, "/agent/h1", nil},
			{"used", first, "", identity.ErrToken},
			{"expired", late, "", identity.ErrToken},
			{"expired and asked again", late, "", identity.ErrToken},
			{"of another secret", changed(second), "", identity.ErrToken},
			{"the other good one", second, "/agent/h2", nil},
		}
		for _, test := range tests {
			path, err := tokens.Redeem(ctx, test.token)
			if path != test.path || !errors.Is(err, test.err) {
				t.Errorf("%s: %q, %v: want %q, %v", test.name, path, err, test.path, test.err)
			}
		}
		if _, err := tokens.Redeem(ctx, "nonsense"); err == nil || errors.Is(err, identity.ErrToken) {
			t.Errorf("nonsense: %v, want to hear what a token looks like", err)
		}
		// Creating sweeps what has expired.
		create("/agent/h4", time.Minute)
		time.Sleep(time.Hour)
		create("/agent/h5", time.Minute)
		if entries, _, err := kept.List(ctx, "", "", 0, 0); err != nil || len(entries) != 1 {
			t.Errorf("the store holds %d entries, %v: want 1", len(entries), err)
		}
	})
}

// changed alters the secret of a token.
func changed(token string) string {
	c := byte('A')
	if token[len("bocage-join.")] == c {
		c = 'B'
	}
	return "bocage-join." + string(c) + token[len("bocage-join.")+1:]
}

func TestTokenWorksOnceForMany(t *testing.T) {
	tokens := identity.Tokens{Store: mem.New(), Bundle: newAuthority(t).Bundle()}
	token, err := tokens.Create(t.Context(), "/agent/h1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	results := make(chan error, 16)
	for range cap(results) {
		group.Go(func() {
			_, err := tokens.Redeem(t.Context(), token)
			results <- err
		})
	}
	group.Wait()
	close(results)
	good := 0
	for err := range results {
		switch {
		case err == nil:
			good++
		case !errors.Is(err, identity.ErrToken):
			t.Error(err)
		}
	}
	if good != 1 {
		t.Errorf("the token worked %d times", good)
	}
}

func TestTokenCreateRefuses(t *testing.T) {
	tokens := identity.Tokens{Store: mem.New(), Bundle: newAuthority(t).Bundle()}
	for path, ttl := range map[string]time.Duration{
		"/agent/h1.>": time.Hour, "/agent/*": time.Hour, "": time.Hour,
		"/agent/h1": 0, "/agent/h2": -time.Hour, "/agent/h3": 8 * 24 * time.Hour,
	} {
		if token, err := tokens.Create(t.Context(), path, ttl); err == nil {
			t.Errorf("Create(%q, %s) = %q", path, ttl, token)
		}
	}
}
