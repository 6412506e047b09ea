// This file holds Profile: which lifetimes a role's certificates may have.

package ca

import (
	"fmt"
	"time"

	"github.com/aval-id/aval/identity"
)

// Lifetimes of workload leaves where nothing else is set.
const (
	DefaultTTL    = 4 * time.Hour
	DefaultMinTTL = 5 * time.Minute
	DefaultMaxTTL = 24 * time.Hour
)

// Backdate is how far NotBefore lies before the moment of issue, so that a
// peer whose clock runs a little late takes the certificate.
const Backdate = time.Minute

// Profile bounds the lifetimes of one role's certificates.
type Profile struct {
	Default time.Duration // where the request names none
	Min     time.Duration // shorter ones are refused
	Max     time.Duration // longer ones are cut to it
}

// Profiles are the profiles of each role that an authority issues for.
type Profiles struct {
	Workload, Node, Server Profile
	// VerifyEvery is of how many leaves one, picked at random, has its
	// signature verified before anybody sees it: 1 means each, 0 none. Those
	// of authorities, and those of keys outside of this process, always have.
	VerifyEvery int
}

// Check reports whether ttl, or the default where it is zero, lies within the
// profile's bounds.
func (p Profile) Check(ttl time.Duration) error {
	switch {
	case ttl == 0:
		return nil
	case ttl < p.Min:
		return fmt.Errorf("lifetime %s is below the profile's %s", ttl, p.Min)
	case ttl > p.Max:
		return fmt.Errorf("lifetime %s is above the profile's %s", ttl, p.Max)
	}
	return nil
}

// lifetime picks the lifetime for a request: the default for zero, at most
// Max, and an error below Min.
func (p Profile) lifetime(ttl time.Duration) (time.Duration, error) {
	if ttl == 0 {
		ttl = p.Default
	}
	ttl = min(ttl, p.Max)
	if ttl < p.Min || ttl <= 0 {
		return 0, fmt.Errorf("lifetime %s is below the profile's %s", ttl, p.Min)
	}
	return ttl, nil
}

// of returns the profile of a role. Every role that is never issued ends in
// an error.
func (p Profiles) of(role identity.Role) (Profile, error) {
	switch role {
	case identity.RoleWorkload:
		return p.Workload, nil
	case identity.RoleNode:
		return p.Node, nil
	case identity.RoleServer:
		return p.Server, nil
	case identity.RoleAdmin, identity.RoleReserved:
	}
	return Profile{}, fmt.Errorf("no profile for the role %s", role)
}
