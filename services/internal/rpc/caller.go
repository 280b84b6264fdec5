package rpc

import (
	"context"
	"time"
)

// Class says how much a caller may have under way.
type Class int

const (
	// Stranger is a caller that has not said who it is: anyone who can connect.
	Stranger Class = iota
	// User is a caller whose credentials were verified.
	User
	// System is a node or a service of the cluster. Many may share a connection, as
	// simulated nodes do.
	System
)

// Caller is the caller of an RPC, as far as it is known before a message is read.
type Caller struct {
	// Name is the user; all calls of a user share a byte budget.
	Name  string
	Class Class
}

// Authenticate determines the caller from the metadata and the connection. It runs
// before anything of a message is read; an error refuses the call.
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
	// maxStrangers bounds the calls of strangers in flight on a server, health
	// watches not counted: those have as many again.
	maxStrangers = 128
	// maxBytes bounds the messages in flight on a server.
	maxBytes = 512 << 20
	// slowMessage is the size from which on a known caller's message has to arrive
	// within its patience: below, a message is in the receive window already.
	slowMessage = 64 << 10
	// smallMessage is free of per-user accounting and of the scan of its elements:
	// it cannot grow much.
	smallMessage = 4 << 10
	// maxElements bounds the messages nested in one message, elementBytes is what
	// each of them costs in memory beside its bytes. An empty element takes two bytes
	// on the wire.
	maxElements  = 1 << 17
	elementBytes = 192
)
