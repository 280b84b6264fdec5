package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// File names and the common name of the certificates that apiservers present to each other, as
// the apiserver's flag --peer-identity expects them.
const (
	peerDir        = "peer"
	peerTransition = "accept-cluster-authority"
	peerName       = "keelson-peer"
)

// EnsurePeers creates the peer authority in a directory of its own, and the certificate that
// apiservers present to each other in the directory "peer" below their identity. Only
// EnsurePeers uses the authority's key.
//
// If the apiservers have been running without peer certificates (existed), they also accept the
// cluster's authority until FinishPeers is called.
func EnsurePeers(authority, apiserver string, existed bool) error {
	dir := filepath.Join(apiserver, peerDir)
	for _, d := range []string{authority, dir} {
		if err := private(d, 0o700); err != nil {
			return err
		}
	}
	_, err := os.Stat(filepath.Join(dir, "tls.crt"))
	if errors.Is(err, fs.ErrNotExist) && existed {
		// Write this first: an apiserver that found only the certificate would refuse the
		// others.
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

// TransitionSince returns since when the apiservers of an identity also accept certificates of
// the cluster's authority. ok is false if they do not.
func TransitionSince(apiserver string) (since time.Time, ok bool) {
	st, err := os.Stat(filepath.Join(apiserver, peerDir, peerTransition))
	if err != nil {
		return since, false
	}
	return st.ModTime(), true
}

// FinishPeers makes the apiservers of an identity accept only peer certificates, at once. All
// of them must have been started with theirs.
func FinishPeers(apiserver string) error {
	err := os.Remove(filepath.Join(apiserver, peerDir, peerTransition))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
