"""The compatibility driver of confluent-kafka."""

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

import driver

OFFSET_BEGINNING = -2


class Confluent(driver.Client):
    def produce(self):
        failed = []

        def delivered(error, _):
            if error is not None:
                failed.append(error)

        producer = Producer({
            "bootstrap.servers": self.job.bootstrap,
            "compression.type": self.job.codec,
            "enable.idempotence": self.job.idempotent,
            "linger.ms": 20,
        })
        for key, value in driver.records():
            producer.produce(self.job.topic, key=key, value=value, on_delivery=delivered)
        left = producer.flush(driver.LIMIT_SECONDS)
        if failed or left:
            raise RuntimeError(f"{left} records not delivered, {len(failed)} refused: {failed[:1]}")

    def consumer(self):
        return Consumer({
            "bootstrap.servers": self.job.bootstrap,
            "group.id": self.job.group or "unused",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": self.job.session,
            "heartbeat.interval.ms": 500,
            "isolation.level": self.job.isolation,
        })

    def poll(self, consumer):
        seen = 0
        while seen < self.job.max:
            self.in_time(f"saw {seen} of {self.job.max} records")
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            self.show(message.partition(), message.offset(), message.key(), message.value())
            seen += 1
        return message

    def consume(self):
        consumer = self.consumer()
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in self.job.topics])
        self.poll(consumer)
        consumer.close()

    def resume(self):
        consumer = self.consumer()
        consumer.subscribe([self.job.topic])
        consumer.commit(message=self.poll(consumer), asynchronous=False)
        consumer.close()

    def member(self):
        def show(consumer, partitions):
            self.show_assigned([p.partition for p in partitions])

        consumer = self.consumer()
        consumer.subscribe([self.job.topic], on_assign=show, on_revoke=lambda c, _: self.show_assigned([]))
        ended = driver.end_of_input()
        while not ended.is_set():
            message = consumer.poll(0.1)
            if message is not None:
                if message.error():
                    raise KafkaException(message.error())
                self.show(message.partition(), message.offset(), message.key(), message.value())
                consumer.commit(message=message, asynchronous=False)
        consumer.close()

    def seek(self):
        consumer = self.consumer()
        found = consumer.offsets_for_times([TopicPartition(self.job.topic, 0, self.job.timestamp)], timeout=30)
        consumer.assign(found)
        self.poll(consumer)
        consumer.close()

    def begin_transactions(self):
        self.producer = Producer({
            "bootstrap.servers": self.job.bootstrap,
            "transactional.id": self.job.id,
            "transaction.timeout.ms": self.job.timeout,
        })
        self.producer.init_transactions()

    def name_of(self, error):
        return error.args[0].name() if isinstance(error, KafkaException) else super().name_of(error)

    def step_begin(self):
        self.producer.begin_transaction()

    def step_send(self, topic, partition, key, value):
        self.producer.produce(topic, partition=int(partition), key=key, value=value)

    def step_flush(self):
        self.producer.flush()

    def step_offset(self, group, topic, partition, offset):
        consumer = Consumer({"bootstrap.servers": self.job.bootstrap, "group.id": group})
        metadata = consumer.consumer_group_metadata()
        self.producer.send_offsets_to_transaction([TopicPartition(topic, int(partition), int(offset))], metadata)
        consumer.close()

    def step_commit(self):
        self.producer.commit_transaction()

    def step_abort(self):
        self.producer.abort_transaction()

    def copy(self):
        self.begin_transactions()
        consumer = self.consumer()
        consumer.subscribe([self.job.topic])
        ended = driver.end_of_input()
        transaction = 0
        while not ended.is_set():
            messages = consumer.consume(self.job.max, timeout=0.1)
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
            if not messages:
                continue
            transaction += 1
            if self.copied(consumer, messages, transaction):
                for message in messages:
                    self.show(message.partition(), message.offset(), message.key(), message.value())
            else:
                self.rewind(consumer)
        consumer.close()

    def copied(self, consumer, messages, transaction):
        """Copies some records in one transaction, and tells whether they were committed."""
        try:
            self.producer.begin_transaction()
            for message in messages:
                self.producer.produce(self.job.to, partition=message.partition(), key=message.key(), value=message.value())
            self.producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata())
            self.producer.flush()
            if any(message.key().decode() == self.job.stall for message in messages):
                self.stall()
            if transaction % driver.ABORTED:
                self.producer.commit_transaction()
                return True
        except KafkaException as e:
            if not e.args[0].txn_requires_abort():  # the group may have moved on meanwhile
                raise
        self.producer.abort_transaction()
        return False

    def rewind(self, consumer):
        """Returns to what the group has committed."""
        for partition in consumer.committed(consumer.assignment()):
            if partition.offset < 0:
                partition.offset = OFFSET_BEGINNING
            consumer.seek(partition)

    def admin(self):
        self.administrator = AdminClient({"bootstrap.servers": self.job.bootstrap})
        super().admin()

    def resource(self):
        return ConfigResource(ResourceType.TOPIC, self.job.topic)

    def create(self, partitions, configs):
        topic = NewTopic(self.job.topic, num_partitions=partitions, replication_factor=1, config=configs)
        self.administrator.create_topics([topic])[self.job.topic].result(30)

    def partitions(self):
        topics = self.administrator.list_topics(timeout=30).topics
        return len(topics[self.job.topic].partitions) if self.job.topic in topics else 0

    def config(self, name):
        resource = self.resource()
        return self.administrator.describe_configs([resource])[resource].result(30)[name].value

    def alter(self, configs):
        changes = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in configs.items()]
        resource = ConfigResource(ResourceType.TOPIC, self.job.topic, incremental_configs=changes)
        self.administrator.incremental_alter_configs([resource])[resource].result(30)

    def add_partitions(self, total):
        self.administrator.create_partitions([NewPartitions(self.job.topic, total)])[self.job.topic].result(30)

    def delete(self):
        self.administrator.delete_topics([self.job.topic])[self.job.topic].result(30)


driver.main(Confluent)
