package identity

import (
	"fmt"
	"slices"
	"strings"
)

// PeerName is the common name of the certificates by which apiservers know each
// other on their peer ports. They are signed by an authority of their own.
const PeerName = "keelson-peer"

// BootstrapNode is the extra of a user who authenticated with a bootstrap token that
// is for one node only: its name.
const BootstrapNode = "keelson.dev/node-name"

const (
	reservedPrefix = "system:"
	nodePrefix     = "system:node:"
	nodesGroup     = "system:nodes"
)

// controlPlane are the names of the control plane's certificates that do not begin
// with "system:". Etcd's client port knows its callers by them.
var controlPlane = []string{"kube-apiserver", "kubernetes-admin", "keelson-ca", "keelson-peer-ca", PeerName}

// Reserved returns an error if a subject's common name or organizations are the
// control plane's, a node's, a service account's or any other name or group that the
// cluster itself gives: no certificate request may have them. more are further
// common names that are reserved.
func Reserved(commonName string, organizations []string, more ...string) error {
	if strings.HasPrefix(commonName, reservedPrefix) || slices.Contains(controlPlane, commonName) || slices.Contains(more, commonName) {
		return fmt.Errorf("common name %q is reserved", commonName)
	}
	for _, o := range organizations {
		if strings.HasPrefix(o, reservedPrefix) {
			return fmt.Errorf("organization %q is reserved", o)
		}
	}
	return nil
}

// NodeSubject returns the node that a subject names, which must be one as
// Kubernetes' kubelet signers demand.
func NodeSubject(commonName string, organizations []string) (node string, err error) {
	node, ok := strings.CutPrefix(commonName, nodePrefix)
	switch {
	case !slices.Equal(organizations, []string{nodesGroup}):
		return "", fmt.Errorf("subject organization is not %q", nodesGroup)
	case !ok || node == "":
		return "", fmt.Errorf("subject common name does not begin with %q", nodePrefix)
	}
	return node, nil
}
