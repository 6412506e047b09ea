// This file holds tokenCache: tokens that were verified lately, so that a
// client that sends one with each request costs one signature.

package request

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxCachedBytes bounds about what the tokens of one cache hold.
const maxCachedBytes = 16 << 20

// tokenCache holds verified tokens by their hash until they end. Only what a
// known issuer signed gets in.
type tokenCache struct {
	mu    sync.RWMutex
	held  map[[sha256.Size]byte]*verified // guarded by mu
	bytes int                             // guarded by mu
}

// get returns the token, or nil where it was not verified or has ended.
func (c *tokenCache) get(sum [sha256.Size]byte, now time.Time) *verified {
	c.mu.RLock()
	v := c.held[sum]
	c.mu.RUnlock()
	if v == nil || !now.Before(v.end) {
		return nil
	}
	return v
}

// put enters a token, and drops others where there are too many.
func (c *tokenCache) put(sum [sha256.Size]byte, v *verified) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.held[sum]; old != nil {
		c.bytes -= old.cost
	}
	c.held[sum] = v
	c.bytes += v.cost
	for other, o := range c.held {
		if c.bytes <= maxCachedBytes {
			return
		}
		if other != sum {
			delete(c.held, other)
			c.bytes -= o.cost
		}
	}
}
