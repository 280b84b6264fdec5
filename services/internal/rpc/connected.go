package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// Connected returns a check that passes while conn is connected to at least one endpoint.
func Connected(conn *grpc.ClientConn) func(context.Context) error {
	return func(context.Context) error {
		if state := conn.GetState(); state != connectivity.Ready {
			return errors.New("not connected to any endpoint: " + state.String())
		}
		return nil
	}
}
