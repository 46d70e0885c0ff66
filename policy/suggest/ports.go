package suggest

import (
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// interfaceName names a port as people do.
func interfaceName(first service, last uint16) string {
	known := map[service]string{
		{bocage.ProtocolTCP, 22}: "ssh", {bocage.ProtocolTCP, 25}: "smtp", {bocage.ProtocolTCP, 53}: "dns-tcp", {bocage.ProtocolUDP, 53}: "dns",
		{bocage.ProtocolTCP, 80}: "http", {bocage.ProtocolUDP, 123}: "ntp", {bocage.ProtocolTCP, 389}: "ldap", {bocage.ProtocolTCP, 443}: "https",
		{bocage.ProtocolUDP, 443}: "quic", {bocage.ProtocolTCP, 636}: "ldaps", {bocage.ProtocolTCP, 1433}: "mssql", {bocage.ProtocolTCP, 1883}: "mqtt",
		{bocage.ProtocolTCP, 2379}: "etcd", {bocage.ProtocolTCP, 3306}: "mysql", {bocage.ProtocolTCP, 4222}: "nats", {bocage.ProtocolTCP, 5432}: "postgres",
		{bocage.ProtocolTCP, 5672}: "amqp", {bocage.ProtocolTCP, 6379}: "redis", {bocage.ProtocolTCP, 8080}: "http", {bocage.ProtocolTCP, 8443}: "https",
		{bocage.ProtocolTCP, 9090}: "prometheus", {bocage.ProtocolTCP, 9092}: "kafka", {bocage.ProtocolTCP, 9200}: "elasticsearch",
		{bocage.ProtocolTCP, 11211}: "memcached", {bocage.ProtocolTCP, 27017}: "mongodb",
	}
	if name, ok := known[first]; ok && last == first.port {
		return name
	}
	name := strings.ToLower(first.protocol.String())
	if _, err := strconv.Atoi(name); err == nil {
		name = "protocol-" + name
	}
	if first.port == 0 && !first.protocol.HasPorts() {
		return name
	}
	name += "-" + strconv.Itoa(int(first.port))
	if last != first.port {
		name += "-" + strconv.Itoa(int(last))
	}
	return name
}
