package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// Connected is nil while a connection reaches one of its endpoints at least.
func Connected(conn *grpc.ClientConn) func(context.Context) error {
	return func(context.Context) error {
		if state := conn.GetState(); state != connectivity.Ready {
			return errors.New("none is connected: " + state.String())
		}
		return nil
	}
}
