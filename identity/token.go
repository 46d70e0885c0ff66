package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"bocage.dev/bocage/store"
)

// tokensPrefix is where the store keeps tokens: under their hash, so that reading
// the store gives nobody a token.
const tokensPrefix = "tokens/"

const (
	tokenScheme = "bocage-join"
	secretBytes = 20
	// MaxTokenTTL bounds the life of a join token.
	MaxTokenTTL = 7 * 24 * time.Hour
	// maxTokens bounds how many tokens may wait to be redeemed.
	maxTokens = 10_000
)

// ErrToken means that a token is unknown, used or expired. It does not say which:
// whoever guesses learns nothing.
var ErrToken = errors.New("the join token is unknown, used or expired: make a new one with bocage agent token HOST")

// Tokens makes and redeems join tokens. A token works once, for one path, until
// it expires, and names the trust anchors that its bearer may believe.
type Tokens struct {
	Store  store.Store
	Bundle *Bundle
}

type tokenRecord struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Path    string    `json:"path"`
	Expires time.Time `json:"expires"`
}

// Create makes a token for a path and removes those that have expired.
func (t *Tokens) Create(ctx context.Context, path string, ttl time.Duration) (token string, err error) {
	if err := CheckPath(path); err != nil {
		return "", fmt.Errorf("create join token: %w", err)
	}
	if ttl <= 0 || ttl > MaxTokenTTL {
		return "", fmt.Errorf("create join token: a life of %s is not between 0 and %s", ttl, MaxTokenTTL)
	}
	if err := t.sweep(ctx); err != nil {
		return "", fmt.Errorf("create join token: %w", err)
	}
	secret := make([]byte, secretBytes)
	rand.Read(secret) // never fails
	hash := sha256.Sum256(secret)
	record, err := json.Marshal(tokenRecord{Hash: hash[:], Path: path, Expires: t.Bundle.Now().Add(ttl)})
	if err != nil {
		return "", fmt.Errorf("create join token: %w", err)
	}
	if _, err := store.Put(ctx, t.Store, tokenKey(hash), record, store.Absent); err != nil {
		return "", fmt.Errorf("create join token: %w", err)
	}
	return strings.Join([]string{tokenScheme, base64.RawURLEncoding.EncodeToString(secret), t.Bundle.pins()[0]}, "."), nil
}

// Redeem takes a token out of the store and returns the path that it was made
// for. Of two who redeem the same token one succeeds.
func (t *Tokens) Redeem(ctx context.Context, token string) (path string, err error) {
	secret, _, err := splitToken(token)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(secret)
	entry, err := t.Store.Get(ctx, tokenKey(hash))
	if errors.Is(err, store.ErrNotFound) {
		return "", ErrToken
	}
	if err != nil {
		return "", fmt.Errorf("redeem join token: %w", err)
	}
	var record tokenRecord
	if err := json.Unmarshal(entry.Value, &record); err != nil {
		return "", fmt.Errorf("redeem join token: %w", err)
	}
	_, err = store.Delete(ctx, t.Store, entry.Key, entry.Revision)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return "", ErrToken // somebody was faster
	}
	if err != nil {
		return "", fmt.Errorf("redeem join token: %w", err)
	}
	// The look-up was by hash already; this holds even if a store mixes keys up.
	if subtle.ConstantTimeCompare(record.Hash, hash[:]) != 1 || !t.Bundle.Now().Before(record.Expires) {
		return "", ErrToken
	}
	return record.Path, CheckPath(record.Path)
}

// sweep removes expired tokens and refuses when too many are left.
func (t *Tokens) sweep(ctx context.Context) error {
	entries, _, err := t.Store.List(ctx, tokensPrefix, "", 0, 0)
	if err != nil {
		return err
	}
	left := len(entries)
	for _, entry := range entries {
		var record tokenRecord
		if err := json.Unmarshal(entry.Value, &record); err == nil && t.Bundle.Now().Before(record.Expires) {
			continue
		}
		_, err := store.Delete(ctx, t.Store, entry.Key, entry.Revision)
		if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		left--
	}
	if left >= maxTokens {
		return fmt.Errorf("%d tokens wait to be redeemed already", left)
	}
	return nil
}

func tokenKey(hash [sha256.Size]byte) string { return tokensPrefix + hex.EncodeToString(hash[:]) }

var errTokenForm = errors.New("this is no join token: it looks like " + tokenScheme + ".SECRET.HASH and comes from bocage agent token HOST")

func splitToken(token string) (secret []byte, pin string, err error) {
	scheme, rest, _ := strings.Cut(token, ".")
	encoded, pin, _ := strings.Cut(rest, ".")
	secret, err = base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || scheme != tokenScheme || len(secret) != secretBytes {
		return nil, "", errTokenForm
	}
	if hash, err := base64.RawURLEncoding.Strict().DecodeString(pin); err != nil || len(hash) != sha256.Size {
		return nil, "", errTokenForm
	}
	return secret, pin, nil
}
