package admission

import (
	"log/slog"
	"net/netip"
	"time"

	"keelson.dev/services/apiserver/internal/request"
)

// Config of the default chain.
type Config struct {
	State      State
	Authorizer Authorizer
	Escalation Escalation
	// NodeOf is the node that a user is.
	NodeOf func(request.User) (name string, isNode bool)
	// ReservedNames are common names that no certificate request may have.
	ReservedNames []string
	// NotReadySeconds and UnreachableSeconds are what pods tolerate that say
	// nothing of it.
	NotReadySeconds, UnreachableSeconds int64
	// PodSecurity is what the Pod Security Standards do not apply to.
	PodSecurity Exemptions
	// Services is the range of cluster IPs; DenyExternalIPs refuses all external IPs.
	Services        netip.Prefix
	DenyExternalIPs bool
	// Log gets violations of audited levels; nil is the default logger.
	Log *slog.Logger
}

const accountWait = 1500 * time.Millisecond

// Default is the plugins of every cluster, in Kubernetes' order.
func Default(c Config) *Chain {
	lifecycle := &NamespaceLifecycle{State: c.State}
	priority := &Priority{State: c.State}
	certificates := &Certificates{State: c.State, Authorizer: c.Authorizer, Reserved: c.ReservedNames}
	return &Chain{
		Mutators: []Mutator{
			lifecycle,
			&ServiceAccount{State: c.State, Wait: accountWait},
			NodeTaint{},
			priority,
			&DefaultTolerationSeconds{NotReady: c.NotReadySeconds, Unreachable: c.UnreachableSeconds},
			StorageProtection{},
			certificates,
			&DefaultStorageClass{State: c.State},
			&PodTopology{State: c.State},
		},
		Validators: []Validator{
			lifecycle,
			&NodeRestriction{State: c.State, Authorizer: c.Authorizer, NodeOf: c.NodeOf},
			priority,
			NewPodSecurity(c.State, c.PodSecurity, c.Log),
			&ExternalIPs{State: c.State, Services: c.Services, Deny: c.DenyExternalIPs},
			&ClaimResize{State: c.State},
			certificates,
			&RBAC{Escalation: c.Escalation},
		},
	}
}
