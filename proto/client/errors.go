package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/apistatus"
)

// fromRPC converts the error of an RPC into the one that callers see: the Kubernetes Status
// in its details; otherwise the context's own error, if the context ended; otherwise the
// gRPC error, wrapped, so that status.Code still works.
func fromRPC(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	if s := apistatus.FromGRPC(st); s != nil {
		return s
	}
	if code := st.Code(); (code == codes.Canceled || code == codes.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	return fmt.Errorf("%s: %w", what, err)
}

// IsUnavailable reports whether err is not a server's verdict on the request: no server
// answered, the connection broke, or the server answered 503. A write that failed like this
// may have happened.
func IsUnavailable(err error) bool {
	var se *apierrors.StatusError
	if err == nil || errors.As(err, &se) {
		return apierrors.IsServiceUnavailable(err)
	}
	return status.Code(err) == codes.Unavailable || status.Code(err) == codes.Unknown && errors.Is(err, io.EOF)
}
