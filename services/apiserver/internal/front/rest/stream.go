package rest

import "errors"

func (x *exchange) serveStream(connect string, verbs []string) {
	x.fail(errors.New("no streams"))
}
