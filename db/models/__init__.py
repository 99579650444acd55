"""Every table of Mirrorflow."""

from db.base import Base
from db.models.access import Project, Token, User
from db.models.instances import Artifact, EventRow, InboxItem, Instance, NodeExecution, NodeResult
from db.models.servers import Server, ServerCheck
from db.models.tasks import Task, TaskExecution, TaskItem
from db.models.workers import Meta, RemoteAttempt, Worker
from db.models.workflows import Workflow, WorkflowVersion

__all__ = [
    "Artifact",
    "Base",
    "EventRow",
    "InboxItem",
    "Instance",
    "Meta",
    "NodeExecution",
    "NodeResult",
    "Project",
    "RemoteAttempt",
    "Server",
    "ServerCheck",
    "Task",
    "TaskExecution",
    "TaskItem",
    "Token",
    "User",
    "Worker",
    "Workflow",
    "WorkflowVersion",
]
