package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Names of what apiservers know each other by. They are written as the apiserver
// reads them (--peer-identity).
const (
	peerDir        = "peer"
	peerTransition = "accept-cluster-authority"
	peerName       = "keelson-peer"
)

// EnsurePeers makes the authority of peers in a directory of its own, and the
// certificate that apiservers know each other by in "peer" below their identity's
// directory. Nothing but EnsurePeers uses the authority's key.
//
// Where the apiservers ran before without (existed), they go on accepting the
// cluster's authority until FinishPeers.
func EnsurePeers(authority, apiserver string, existed bool) error {
	dir := filepath.Join(apiserver, peerDir)
	for _, d := range []string{authority, dir} {
		if err := private(d, 0o700); err != nil {
			return err
		}
	}
	_, err := os.Stat(filepath.Join(dir, "tls.crt"))
	if errors.Is(err, fs.ErrNotExist) && existed {
		// First: an apiserver that found the certificate alone would refuse the others.
		if err := Keep(filepath.Join(dir, peerTransition), nil, 0o600); err != nil {
			return err
		}
	}
	a, err := open(authority, "keelson-peer-ca")
	if err != nil {
		return err
	}
	return a.ensure(dir, Identity{CommonName: peerName, Hosts: []string{peerName}})
}

// TransitionSince returns since when the apiservers of an identity accept others by
// the cluster's authority too; ok is false where they do not.
func TransitionSince(apiserver string) (since time.Time, ok bool) {
	st, err := os.Stat(filepath.Join(apiserver, peerDir, peerTransition))
	if err != nil {
		return since, false
	}
	return st.ModTime(), true
}

// FinishPeers ends that: every apiserver must have been started with its peer
// certificate. It takes effect at once.
func FinishPeers(apiserver string) error {
	err := os.Remove(filepath.Join(apiserver, peerDir, peerTransition))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
