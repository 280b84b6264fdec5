package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A call that an apiserver refused because its store is out of reach is repeated for this
// long, first at once and then with growing pauses: another apiserver may reach its store,
// or this one may again in a moment.
const (
	againTime                       = 2 * time.Second
	leastAgainPause, mostAgainPause = 20 * time.Millisecond, 250 * time.Millisecond
)

// again is a connection whose unary calls are repeated if a server refused them without
// doing anything. Nothing else is repeated.
type again struct{ grpc.ClientConnInterface }

// Invoke implements grpc.ClientConnInterface.
func (a again) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	var deadline time.Time
	for pause := time.Duration(0); ; pause = min(max(2*pause, leastAgainPause), mostAgainPause) {
		err := a.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
		if err == nil || !nothingDone(err) {
			return err
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(againTime)
		}
		if now.Add(pause).After(deadline) {
			return err
		}
		if pause == 0 {
			continue
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// nothingDone reports whether err is the refusal of a server that did nothing: a 503 that
// says when to retry. An unknown outcome of a write carries no such time.
func nothingDone(err error) bool {
	if status.Code(err) != codes.Unavailable {
		return false
	}
	var se *apierrors.StatusError
	return errors.As(fromRPC(context.Background(), "", err), &se) &&
		se.ErrStatus.Code == 503 && se.ErrStatus.Details != nil && se.ErrStatus.Details.RetryAfterSeconds > 0
}
