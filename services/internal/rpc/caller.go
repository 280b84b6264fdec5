package rpc

import (
	"context"
	"time"
)

// Class determines the limits of a caller.
type Class int

const (
	// Stranger is an unauthenticated caller: any client that can connect.
	Stranger Class = iota
	// User is a caller whose credentials were verified.
	User
	// System is a node or a service of the cluster. Many may share a connection, as
	// simulated nodes do.
	System
)

// Caller is what is known of the caller of an RPC before a message is read.
type Caller struct {
	// Name is the user; all calls of a user share a byte budget.
	Name  string
	Class Class
}

// Authenticate determines the caller from the metadata and the connection, and returns the
// context of the call. It runs before any message is read; an error refuses the call.
type Authenticate func(ctx context.Context, fullMethod string) (context.Context, Caller, error)

// limits of a class.
type limits struct {
	message  int           // bytes of one message, as sent and inflated
	bytes    int64         // of a user's messages in flight
	streams  int32         // calls in flight on one connection
	inflate  bool          // compressed messages are taken
	patience time.Duration // for a message to arrive; see slowMessage
}

// classLimits are the bounds of each class. A stranger's calls are health checks and what RBAC leaves open to
// anonymous users, none of which needs more than a name. A user's streams are the
// watches and calls of one program (Kubernetes allows 1,000 on a connection, too);
// those of System are a simulator's whole cluster.
var classLimits = [...]limits{
	Stranger: {message: 16 << 10, bytes: maxStrangers * 16 << 10, streams: 16, patience: 5 * time.Second},
	User:     {message: MaxMessage, bytes: 64 << 20, streams: 1000, inflate: true, patience: time.Minute},
	System:   {message: MaxMessage, bytes: 256 << 20, streams: maxStreams, inflate: true, patience: time.Minute},
}

const (
	// maxStrangers bounds the calls of strangers in flight on a server, without health
	// watches, which have the same bound of their own.
	maxStrangers = 128
	// maxBytes bounds the messages in flight on a server.
	maxBytes = 512 << 20
	// slowMessage is the size in bytes from which on an authenticated caller's message must
	// arrive within the patience of its class: smaller ones fit the receive window.
	slowMessage = 64 << 10
	// smallMessage is the size in bytes up to which neither a message nor its elements are
	// counted for its user: it cannot grow much.
	smallMessage = 4 << 10
	// maxElements bounds the messages nested in one message; elementBytes is the memory that
	// each of them takes in addition to its bytes. An empty element has two bytes on the
	// wire.
	maxElements  = 1 << 17
	elementBytes = 192
)
