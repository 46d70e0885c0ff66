package api

import "context"

func (s *Server) signedOn(context.Context, string) (Person, error) {
	return Person{}, unauthorized("signed tokens are not accepted: no provider is configured")
}
