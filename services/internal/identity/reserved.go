package identity

import (
	"fmt"
	"slices"
	"strings"
)

// PeerName is the common name of the certificates by which apiservers authenticate each other
// on their peer ports. A CA of their own signs them.
const PeerName = "keelson-peer"

// BootstrapNode is the key in a user's extra with the name of the one node that the user's
// bootstrap token is for.
const BootstrapNode = "keelson.dev/node-name"

const (
	reservedPrefix = "system:"
	nodePrefix     = "system:node:"
	nodesGroup     = "system:nodes"
)

// controlPlane are the names of the control plane's certificates that do not begin
// with "system:". etcd's client port authorizes its callers by them.
var controlPlane = []string{"kube-apiserver", "kubernetes-admin", "keelson-ca", "keelson-peer-ca", PeerName}

// Reserved returns an error if a subject's common name or organizations belong to the control
// plane, a node or a service account, or are any other name or group that the cluster itself
// assigns: no certificate request may contain them. more are further reserved common names.
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

// NodeSubject returns the name of the node that a subject is for, or an error if the subject
// is not one that Kubernetes' kubelet signers accept.
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
